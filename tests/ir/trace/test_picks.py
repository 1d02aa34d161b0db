"""Numbers that the code lists are slices where they are evenly spaced, and stay numbers elsewhere."""

import pytest
import torch
from torch import nn

from sparsify.ir.trace.trace import trace

aten = torch.ops.aten
X = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
# Numbers, and the slice that they are.
EVEN = {
    "one from the end": ([-2], (1, 4, 5)),
    "a run": ([1, 2, 3], (1, 1, 4)),
    "every second": ([0, 2, 4], (1, 0, 5, 2)),
    "from both ends": ([4, -1], (1, 4, 6)),
}
ODD = {"falling": [3, 2, 1], "twice": [2, 2], "uneven": [0, 1, 3], "around": [-1, 0]}


class Picks(nn.Module):
    """Takes entries of the middle dimension of `[batch, 6, 5]`; the numbers are listed, or a buffer."""

    def __init__(self, numbers, stored):
        super().__init__()
        self.numbers = numbers
        self.register_buffer("places", torch.tensor(numbers) if stored else None)

    def forward(self, x):
        places = self.numbers if self.places is None else self.places
        return x[:, places] * 2


def picked(numbers, stored=False):
    model = Picks(numbers, stored)
    program = trace(model, {"x": X}, {"x": {0: "batch"}})
    assert torch.equal(program.run({"x": X[:2]})[0], model(X[:2]))
    return [node.args[1:] for node in program.graph.nodes if node.target is aten.slice.Tensor], sum(
        node.target is aten.index.Tensor for node in program.graph.nodes
    )


@pytest.mark.parametrize("name", EVEN)
def test_evenly_spaced_numbers_are_a_slice(name):
    numbers, wanted = EVEN[name]
    assert picked(numbers) == ([wanted], 0)


@pytest.mark.parametrize("name", ODD)
def test_other_numbers_stay(name):
    assert picked(ODD[name]) == ([], 1)


def test_numbers_that_the_model_stores_stay():
    """A buffer may be loaded with others."""
    assert picked([1, 2, 3], stored=True) == ([], 1)
