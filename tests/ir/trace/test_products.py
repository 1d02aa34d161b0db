"""Products with a stored matrix are linears, however they are written."""

import pytest
import torch
from torch import nn

from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears
from sparsify.tensors.precision import largest_difference

X = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0))


class Spelled(nn.Module):
    """A matrix `[4, 6]` and a bias `[4]`, multiplied the way that `code` says."""

    def __init__(self, code):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.square = nn.Parameter(torch.randn(6, 6))
        self.bias = nn.Parameter(torch.randn(4))
        self.code = code

    def forward(self, x):
        return self.code(self, x)


LINEAR = {
    "T": lambda m, x: x @ m.weight.T,
    "t": lambda m, x: torch.matmul(x, m.weight.t()),
    "transpose": lambda m, x: x @ m.weight.transpose(-1, -2),
    "permute": lambda m, x: x @ m.weight.permute(1, 0),
    "bias": lambda m, x: x @ m.weight.T + m.bias,
    "bias first": lambda m, x: m.bias + x @ m.weight.mT,
    "addmm": lambda m, x: torch.addmm(m.bias, x.view(-1, 6), m.weight.t()),
}
# A product of values, a matrix that is not turned, and a turn that is none.
OTHER = {
    "values": lambda m, x: x @ x.transpose(1, 2),
    "not turned": lambda m, x: x @ m.square,
    "no turn": lambda m, x: x @ m.square.permute(0, 1),
    "bias scaled": lambda m, x: torch.addmm(m.bias, x.view(-1, 6), m.weight.t(), alpha=0.5),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_turned_parameter_makes_a_linear(name):
    model = Spelled(LINEAR[name])
    program = trace(model, {"x": X})
    (found,) = linears(program)
    assert (found.weight, found.transposed) == ("weight", False)
    wanted = model(X)
    assert largest_difference(list(program.run({"x": X})), [wanted]) < 1e-6
    adds = [node for node in program.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert not adds


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_linear_stays(name):
    program = trace(Spelled(OTHER[name]), {"x": X})
    assert not linears(program)


def test_a_product_that_is_read_without_its_bias_keeps_the_sum():
    def code(m, x):
        y = x @ m.weight.T
        return (y + m.bias) * y

    model = Spelled(code)
    program = trace(model, {"x": X})
    assert len(linears(program)) == 1
    assert largest_difference(list(program.run({"x": X})), [model(X)]) < 1e-6


def test_a_bias_of_every_feature_alone_is_taken():
    """`b [1]` is added to all features, and no bias of a linear."""

    def code(m, x):
        return x @ m.weight.T + m.one

    model = Spelled(code)
    model.one = nn.Parameter(torch.randn(1))
    program = trace(model, {"x": X})
    assert largest_difference(list(program.run({"x": X})), [model(X)]) < 1e-6
