"""Forms that models write and no axis rule knows, brought into those that it does."""

import json

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.ir.axes.groups import heads
from sparsify.ir.axes.walk import analyse
from sparsify.ir.trace.trace import trace

aten = torch.ops.aten
DIMS = {"x": {0: "batch", 1: "length"}}
HEADS, SIZE = 4, 6


class Attends(nn.Module):
    """`x [batch, length, 24]`, attention by batched products with batch and heads as one dimension."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.form = form

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (self._heads(part(x)) for part in (self.q, self.k, self.v))
        if self.form == "written":
            whole = k.new_empty(k.shape)
            whole[..., 4:] = k[..., :2]
            whole[..., :4] = k[..., 2:]
            k = whole
        if self.form == "complex":
            q, k = self._turned(q), self._turned(k)
        scores = torch.bmm(q, k.transpose(1, 2))
        if self.form == "slopes":
            slopes = torch.pow(0.5, torch.arange(1.0, HEADS + 1))
            bias = (slopes[:, None] * torch.arange(length)).expand(batch, HEADS, length)
            scores = scores + bias.reshape(batch * HEADS, 1, length)
        weights = scores.view(batch, HEADS, length, length).softmax(-1)
        y = torch.bmm(weights.view(batch * HEADS, length, length), v)
        y = y.view(batch, HEADS, length, SIZE).transpose(1, 2)
        return x + self.o(y.reshape(batch, length, 24))

    def _heads(self, y):
        batch, length, _ = y.shape
        y = y.view(batch, length, HEADS, SIZE).transpose(1, 2)
        return y.reshape(batch * HEADS, -1, SIZE)

    def _turned(self, y):
        angles = torch.outer(torch.arange(y.shape[1]).float(), torch.tensor([1.0, 0.1, 0.01]))
        turns = torch.polar(torch.ones_like(angles), angles) * 0.9
        pairs = torch.view_as_complex(y.float().reshape(*y.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[None]).flatten(2)


def traced(form):
    model = Attends(form).eval()
    return model, trace(model, {"x": torch.randn(2, 5, 24)}, DIMS)


@pytest.mark.parametrize("form", ["plain", "complex", "slopes", "written"])
def test_heads_beside_the_batch_are_heads(form):
    """Masked by half and then removed: the same, at another batch and length than the sample's."""
    model, program = traced(form)
    (found,) = heads(analyse(program))
    assert found.size == HEADS
    assert not any(
        value.is_complex()
        for node in program.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor)
    )
    masks = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5}"
    masked = parse(masks).run(program, Context())
    x = torch.randn(3, 7, 24)
    wanted = masked.run({"x": x})[0]
    with torch.no_grad():
        assert not torch.allclose(model(x), wanted)
    smaller = parse("prune-heads").run(masked, Context())
    assert smaller.tensor("q.weight").shape == (12, 24)
    torch.testing.assert_close(smaller.run({"x": x})[0], wanted)


class Pairs(nn.Module):
    """Gate and up stand side by side in the columns of one linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.both, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x):
        y = self.both(x)
        return x + self.down(y[..., ::2].sigmoid() * y[..., 1::2])


def test_channels_that_stand_in_pairs_go_in_pairs():
    program = trace(Pairs().eval(), {"x": torch.randn(2, 5, 8)}, DIMS)
    masks = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    masked = parse(masks).run(program, Context())
    x = torch.randn(3, 7, 8)
    wanted = masked.run({"x": x})[0]
    smaller = parse("prune-channels").run(masked, Context())
    assert smaller.tensor("both.weight").shape == (12, 8)
    assert smaller.tensor("down.weight").shape == (8, 6)
    torch.testing.assert_close(smaller.run({"x": x})[0], wanted)


def test_heads_that_one_group_serves_go_one_by_one(tmp_path):
    """Multi-query attention: half of the query heads go, the keys and values stay; a config can say it."""
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 60}
    heads_of = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 12}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads_of)).eval()
    masks = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5}"
    masked = parse(masks).run(trace(model), Context())
    wanted = masked.run()[0]
    smaller = parse("prune-heads").run(masked, Context())
    attention = "model.layers.1.self_attn"
    assert smaller.tensor(f"{attention}.q_proj.weight").shape == (24, 48)
    assert smaller.tensor(f"{attention}.k_proj.weight").shape == (12, 48)
    torch.testing.assert_close(smaller.run()[0], wanted)
    export(smaller, tmp_path / "mqa", ["huggingface"])
    config = json.loads((tmp_path / "mqa" / "huggingface" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
