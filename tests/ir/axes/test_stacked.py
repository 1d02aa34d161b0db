"""The matrices that stacks are made of: those of a feed-forward block and of an attention, by structure."""

import pytest
import torch
from torch import nn

from sparsify.ir.axes.feed_forward import feed_forwards
from sparsify.ir.axes.projections import projections
from sparsify.ir.trace.trace import trace
from tests.ir.axes.families import traced as family

FFN = {
    "llama": ("mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "opt": ("fc1", "fc2"),
}
ATTENTION = {
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@pytest.mark.parametrize("name", FFN)
def test_the_pair_of_a_feed_forward_block_is_found_and_its_gate_is_not(name, traced):
    program = traced(name)
    found = [(b.up.weight, b.last.weight) for b in feed_forwards(program)]
    assert len(found) == 2
    for up, last in found:
        assert up.endswith(f"{FFN[name][0]}.weight")
        assert last.endswith(f"{FFN[name][1]}.weight")


@pytest.mark.parametrize("name", ATTENTION)
def test_the_linears_of_an_attention_are_found(name, traced):
    found = projections(traced(name))
    assert [[v.weight.split(".")[-2] for v in block] for block in found] == [ATTENTION[name]] * 2


def test_attentions_of_two_stacks_and_written_out_ones():
    """All attentions of T5 share their heads by its bias: each has its own four all the same."""
    found = [[v.weight.split(".")[-2] for v in block] for block in projections(family("t5"))]
    assert found == [["q", "k", "v", "o"]] * 6
    (eager,) = projections(family("llama-eager"))
    assert [v.weight.split(".")[-2] for v in eager] == ATTENTION["llama"]


class Gated(nn.Module):
    """A block whose activation is written out, its gate first."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False)
        self.three = nn.Linear(12, 8, bias=False)

    def forward(self, x):
        gate = self.one(x)
        return x + self.three(gate * torch.sigmoid(gate) * self.two(x))


def test_a_gate_is_known_by_its_activation():
    program = trace(Gated(), {"x": torch.randn(2, 3, 8)}, {"x": {0: "batch"}})
    (block,) = feed_forwards(program)
    assert (block.first.weight, block.up.weight) == ("one.weight", "two.weight")
