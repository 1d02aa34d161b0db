"""Mixtures written by hand: two matrices and biases an expert, experts that are linears of their own."""

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  the op of the products
from torch import Tensor, nn
from torch.nn.functional import gelu

from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.trace.trace import trace
from sparsify.tensors.precision import relative_difference

SHARED = (
    "insert-probes{of=routers} | calibrate{samples=16} | choose-clusters{experts=3} | remove-probes | "
    "merge-experts"
)
DATA = TextData(torch.randint(0, 11, (256,), generator=torch.Generator().manual_seed(5)), 16)
PLANTED = [0, 1, 2, 0, 1, 2]


class Grouped(nn.Module):
    """Six experts of two matrices and two biases, `gelu(x A^T + a) B^T + b`, two for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.router = nn.Linear(16, 6, bias=False)
        self.up, self.up_bias = (nn.Parameter(torch.randn(6, *s)) for s in ((24, 16), (24,)))
        self.down, self.down_bias = (nn.Parameter(torch.randn(6, *s)) for s in ((16, 24), (16,)))
        self.head = nn.Linear(16, 11, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        rows = x.reshape(-1, 16)
        product = torch.ops.transformers.grouped_mm_fallback
        weights, numbers = self.router(rows).softmax(-1).topk(2)
        ordered, places = numbers.reshape(-1).sort()
        ends = ordered.float().histc(6, 0, 5).cumsum(0, dtype=torch.int32)
        taken = rows[places // 2]
        hidden = product(taken, self.up.transpose(-2, -1), ends) + self.up_bias[ordered]
        found = product(gelu(hidden), self.down.transpose(-2, -1), ends)
        found = (found + self.down_bias[ordered]) * weights.reshape(-1)[places, None]
        back = torch.empty_like(places)
        back[places] = torch.arange(places.shape[0])
        mixed = found[back].view(rows.shape[0], 2, 16).sum(1)
        return self.head(x + mixed.reshape(x.shape))


class Apart(nn.Module):
    """Experts that are linears of their own, all of them run on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.router = nn.Linear(16, 6, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.head = nn.Linear(16, 11, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        weights, numbers = self.router(x).softmax(-1).topk(2)
        for number, expert in enumerate(self.experts):
            share = (weights * (numbers == number)).sum(-1, keepdim=True)
            x = x + share * expert(x)
        return self.head(x)


def program_of(module):
    ids = torch.arange(10).reshape(2, 5)
    return trace(module.eval(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


def test_two_matrices_and_biases():
    """Copies of three experts with their neurons in other orders are merged without a trace."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = Grouped()
        with torch.no_grad():
            module.router.weight.copy_(torch.randn(3, 16)[PLANTED] + 0.1 * torch.randn(6, 16))
            for value in (module.up, module.up_bias, module.down, module.down_bias):
                value.copy_(value[PLANTED])
            for expert in range(6):
                order = torch.randperm(24)
                module.up[expert] = module.up[expert][order]
                module.up_bias[expert] = module.up_bias[expert][order]
                module.down[expert] = module.down[expert][:, order]
    program = program_of(module)
    merged = parse(SHARED).run(program.clone(), Context(data=DATA))
    assert merged.plan["clusters"] == {"router.weight": PLANTED}
    sizes = {"up": (24, 16), "up_bias": (24,), "down": (16, 24), "down_bias": (16,)}
    assert all(merged.tensor(path).shape == (3, *size) for path, size in sizes.items())
    assert relative_difference(program.run()[0], merged.run()[0]) <= 1e-5


def test_experts_that_are_linears_of_their_own_are_refused():
    program = program_of(Apart())
    with pytest.raises(OptionError, match="the program has no prunable experts"):
        parse(SHARED).run(program, Context(data=DATA))
