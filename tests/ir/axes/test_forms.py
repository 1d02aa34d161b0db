"""Ops in forms that few models write: a rule answers or says that it does not fit, and never breaks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsify.ir.axes import walk
from sparsify.ir.axes.walk import analyse
from sparsify.ir.trace.trace import trace

aten = torch.ops.aten


class Odd(nn.Module):
    """`x [batch, length, 8]`, with ops on scalars, vectors and sizes known at run time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("third", torch.tensor(3))

    def forward(self, x):
        scalar = self.scalar.softmax(0) + self.scalar.cumsum(0) + self.scalar.cumprod(0)
        scalar = scalar + self.scalar.sum(0) + self.scalar.amax(-1) + self.scalar.max(0).values
        scalar = scalar + self.scalar.flatten().sum() + self.scalar.sort().values
        scalar = scalar + self.scalar.topk(1).values + self.scalar.transpose(0, -1).log_softmax(-1)
        vector = functional.linear(x, self.weight) + x @ self.weight  # [batch, length]
        plain = functional.scaled_dot_product_attention(x[0], x[0], x[0])
        some = x.topk(x.shape[1], dim=1).values.sum(-1)
        copies = vector.repeat_interleave(x.shape[0], dim=0).sum()
        chosen = x.index_select(2, self.third)
        empty = torch.cat([x[:, :, :0], x[:, :, :0]], dim=2).sum()
        weights = (x @ self.weight)[:, None, None].softmax(-1) @ x[:, None]
        return vector + plain.mean() + some + copies + chosen[..., 0] + scalar + empty, weights


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    return trace(Odd(), {"x": x}, {"x": {0: "batch", 1: "length"}})


def test_a_form_that_no_rule_was_written_for_pins(odd):
    analysis = analyse(odd)
    pins = {pin for axes in analysis.axes.values() for axis in axes for pin in axis.root().pins}
    for op in ("linear", "scaled_dot_product_attention", "topk", "repeat_interleave.self_int"):
        assert any(
            pin.startswith(f"op {op} at ") and "a form without a rule" in pin for pin in pins
        )
    assert analysis.tensors["weight"][0].root().pins


def test_a_fault_of_a_rule_is_not_taken_for_a_form_and_names_its_node(odd, monkeypatch):
    def mistyped(analysis, node, args):
        return analysis.axes[args["slef"]]

    monkeypatch.setitem(walk.RULES, aten.sort.stable, mistyped)
    with pytest.raises(KeyError, match="slef") as caught:
        analyse(odd.clone())
    (note,) = caught.value.__notes__
    assert note.startswith("in the axis rule of sort.stable at sort: ")
