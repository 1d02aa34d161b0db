"""Counts of small programs against sums done by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from sparsify.describe.count import count
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.trace.trace import trace


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 4, bias=False)
        self.register_buffer("offset", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        return self.down(self.up(x).relu()) + self.offset


class Grid(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 8, 3, groups=2, padding=1)
        self.outer = nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, x):
        return self.outer(self.inner(x))


class Product(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.call(x)


def program_of(module, *shape):
    return trace(module, {"x": torch.randn(shape)}, {"x": {0: "batch", 1: "length"}})


def test_a_small_module_by_hand():
    torch.manual_seed(0)
    module = Two()
    with torch.no_grad():
        module.up.weight[:3] = 0
        module.up.bias[:2] = 0
    counts = count(program_of(module, 2, 5, 6), batch=3, length=7)
    assert counts.parameters == 6 * 10 + 10 + 10 * 4
    assert counts.linear_parameters == 6 * 10 + 10 * 4
    assert counts.linear_zeros == 18
    assert counts.zeros == 18 + 2
    assert counts.bytes == 4 * 110 + 8 * 4
    assert counts.multiply_adds == 3 * 7 * (6 * 10 + 10 * 4)
    assert counts.sparsity == 0.18
    assert counts.to_json()["sparsity"] == 0.18


def test_a_tied_weight_counts_once_and_works_twice():
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=32, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    counts = count(trace(model), batch=2, length=10)
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    block = 12 * 16 * 16
    attention = 2 * 2 * 10 * 10 * (8 + 8)
    assert counts.linear_parameters == block + 50 * 16
    assert counts.multiply_adds == 2 * 10 * (block + 50 * 16) + attention


def test_convolutions_count_the_window_and_the_groups():
    program = trace(Grid(), {"x": torch.randn(2, 4, 6, 5)}, {"x": {0: "batch"}})
    inner = 3 * 8 * 6 * 5 * (2 * 3 * 3)
    outer = 3 * 8 * 6 * 5 * (3 * 2 * 2)
    assert multiply_adds(program, batch=3, length=99) == inner + outer


def grouped_attention(x):
    q, k = x.view(*x.shape[:2], 4, 4).transpose(1, 2), x[..., :8].unflatten(-1, (2, 4))
    v = torch.cat([k, k], -1).transpose(1, 2)
    return functional.scaled_dot_product_attention(
        q, k.transpose(1, 2), v, enable_gqa=True, is_causal=True
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x @ x.transpose(1, 2), 3 * 7 * 16 * 7),
        (lambda x: torch.bmm(x, x.transpose(1, 2)), 3 * 7 * 16 * 7),
        (lambda x: torch.einsum("bth,bsh->bts", x, x), 3 * 7 * 7 * 16),
        (lambda x: torch.einsum("bth -> bht", x), 0),
        (grouped_attention, 3 * 4 * 7 * 7 * (4 + 8)),
        (torch.relu, 0),
    ],
)
def test_products_by_hand(call, expected):
    assert multiply_adds(program_of(Product(call), 2, 5, 16), batch=3, length=7) == expected


def test_counting_leaves_the_types_of_the_program_alone():
    program = program_of(Two(), 2, 5, 6)
    before = [str(node.meta.get("val")) for node in program.graph.nodes]
    multiply_adds(program, batch=1, length=4096)
    assert [str(node.meta.get("val")) for node in program.graph.nodes] == before


class Picking(torch.nn.Module):
    """A linear map for the rows of a batch that a condition picks."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x, kind):
        out = torch.zeros_like(x)
        out[kind == 1] = self.map(x[kind == 1])
        return x + out


def test_rows_that_a_condition_picks_count_as_all_picked():
    inputs = {"x": torch.randn(2, 5, 8), "kind": torch.tensor([1, 0])}
    dims = {"x": {0: "batch", 1: "length"}, "kind": {0: "batch"}}
    program = trace(Picking().eval(), inputs, dims)
    assert multiply_adds(program, 3, 7) == 3 * 7 * 64
