"""The head of a language model, found in the graph."""

import pytest
import torch
from torch import nn

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import run_to
from sparsify.ir.trace.trace import trace


class Capped(nn.Module):
    """Logits with a bias, scaled and softly capped."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, input_ids):
        return torch.tanh(self.head(self.embed(input_ids)) * 0.5 / 3.0) * 3.0


class Added(Capped):
    """Logits that something else is added to: not of a head alone."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(x) + x.sum(-1, keepdim=True)


def traced_as(module):
    torch.manual_seed(0)
    ids = torch.arange(10).reshape(2, 5)
    return trace(module(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


def logits(program):
    head = find_head(program)
    x, weight, *bias = run_to(program.module, program.sample, head.reads)
    return head.after(nn.functional.linear(x, weight, *bias))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "gemma", "routed", "block"])
def test_the_logits_are_those_of_the_program(name, traced):
    program = traced(name)
    assert torch.equal(logits(program), program.run()[0])
    x, weight, *_ = run_to(program.module, program.sample, find_head(program).reads)
    assert x.dim() == 3
    assert weight.shape[1] == x.shape[2]


def test_what_follows_on_each_logit_is_the_heads():
    program = traced_as(Capped)
    assert len(find_head(program).tail) == 4
    assert find_head(program).bias is not None
    assert torch.equal(logits(program), program.run()[0])


def test_a_masked_head_enters_masked(traced):
    text = (
        "insert-masks{targets=lm_head.weight} | choose-masks{sparsity=0.5 targets=lm_head.weight}"
    )
    program = parse(text).run(traced("llama"), Context())
    assert torch.equal(logits(program), program.run()[0])


def test_other_programs_have_none(traced):
    assert find_head(traced("bert")) is None
    assert find_head(traced("bert-base")) is None
    assert find_head(traced_as(Added)) is None
