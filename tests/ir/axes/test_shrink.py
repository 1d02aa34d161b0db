"""Shrinking: refusals, plans as JSON, flags and everything that passes hang onto weights."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsify.errors import DataError, OptionError
from sparsify.ir.axes.groups import Group, groups, heads
from sparsify.ir.axes.shrink.choice import expand_index
from sparsify.ir.axes.shrink.keep import Keep, keep_from_json, keep_to_json
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.group_mask import add_group_mask
from sparsify.ir.features.lora import add_branch
from sparsify.ir.features.weight_mask import add_mask
from sparsify.ir.graph import Writer
from sparsify.ir.ops.probe import probe
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace
from sparsify.ir.types import infer
from sparsify.ir.views.linear import linear_at, linears
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced
from tests.ir.axes.masked import outputs, prune


def _first(program: Program, kind: str) -> Group:
    return next(group for group in groups(analyse(program)) if group.kind == kind)


def test_a_pinned_axis_is_refused_with_its_reasons() -> None:
    program = traced("bert")
    words = _first(program, "vocabulary")
    with pytest.raises(OptionError, match="cannot be pruned: looked up by embedding at emb"):
        Keep().group(words, range(8))
    with pytest.raises(OptionError, match="cannot be pruned: looked up by embedding at emb"):
        shrink(program, Keep({words.key: [0, 1]}))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "all 48 channels at .* would go; keep at least one"),
        ([0, 48], "must be distinct numbers from 0 to 47"),
        ([-1], "must be distinct numbers from 0 to 47"),
        ([3, 3], "must be distinct numbers from 0 to 47"),
    ],
)
def test_impossible_choices_are_refused(kept: list[int], message: str) -> None:
    program = traced("bert")
    channels = _first(program, "channels")
    with pytest.raises(OptionError, match=message):
        Keep().group(channels, kept)
    with pytest.raises(OptionError, match=message):
        shrink(program, Keep({channels.key: kept}))


def test_kv_groups_must_keep_equally_many_heads() -> None:
    site = heads(analyse(traced("llama")))[0]
    with pytest.raises(OptionError, match=r"would keep \[1, 2\] query heads"):
        Keep().heads(site, [0, 1, 2])


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(OptionError, match="has no axis"):
        shrink(traced("bert"), Keep({("nowhere", 0, 0): [0]}))


def test_a_plan_replays_from_json() -> None:
    once, again = traced("llama"), traced("llama")
    plans = []
    for seed in (1, 2):
        keep, _ = prune(once, seed, ("channels", "head_dim"))
        plans.append(json.loads(json.dumps(keep_to_json(keep))))
    for plan in plans:
        assert keep_to_json(keep_from_json(plan)) == plan
        assert shrink(again, keep_from_json(plan)) == plan
    assert {path for path, _ in once.tensors()} == {path for path, _ in again.tensors()}
    for path, value in once.tensors():
        assert torch.equal(value, again.tensor(path))
    assert largest_difference(outputs(once, once.module), outputs(again, again.module)) == 0.0
    with pytest.raises(DataError, match="plan of pruned axes is damaged"):
        keep_from_json({"leaves": [["up.weight", 0]]})


def test_frozen_stays_frozen_and_types_are_true() -> None:
    program = traced("gpt2")
    for value in program.module.parameters():
        value.requires_grad_(False)
    prune(program, 4, ("channels",))
    assert not any(value.requires_grad for value in program.module.parameters())
    assert all(value.is_contiguous() for _, value in program.tensors())
    for node, value in infer(program).items():
        if isinstance(value, Tensor):
            assert [str(s) for s in value.shape] == [str(s) for s in node.meta["val"].shape]


class Grouped(nn.Module):
    """Attention that shares keys and values by the op's own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 24), nn.Linear(8, 12)
        self.value, self.out = nn.Linear(8, 12), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, 6, 4).transpose(1, 2)
        k = self.key(x).view(batch, length, 3, 4).transpose(1, 2)
        v = self.value(x).view(batch, length, 3, 4).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, 24))


def test_one_head_per_group_leaves_no_grouping_flag() -> None:
    x = torch.randn(2, 5, 8)
    program = trace(Grouped(), {"x": x}, {"x": {0: "batch", 1: "length"}})
    (site,) = heads(analyse(program))
    assert (site.kv_size, site.rep_size) == (3, 2)
    keep = Keep()
    keep.heads(site, [1, 4])  # group 0 keeps its second head, group 2 its first
    with torch.no_grad():
        index = expand_index(site.consumers[0], site)
        dense = program.clone()
        dense.tensor("out.weight")[:, (index != 1) & (index != 4)] = 0
        shrink(program, keep)
        longer = torch.randn(3, 9, 8)
        torch.testing.assert_close(program.module(longer), dense.module(longer))
    attention = torch.ops.aten.scaled_dot_product_attention.default
    (node,) = [n for n in program.graph.nodes if n.target is attention]
    assert "enable_gqa" not in node.kwargs
    assert program.tensor("query.weight").shape == program.tensor("key.weight").shape == (8, 8)
    (site,) = heads(analyse(program))
    assert (site.kv_size, site.rep_size) == (2, 1)


def _decorate(program: Program) -> None:
    """Weight masks, low-rank branches, group masks and probes on every linear inside the layers."""
    generator = torch.Generator().manual_seed(0)
    for kind, found in (("heads", heads), ("channels", groups)):
        for group in found(analyse(program)):
            if not group.prunable or kind not in (getattr(group, "kind", kind),):
                continue
            for consumer in group.consumers:
                view = linear_at(program, consumer.node)
                add_group_mask(program, view, kind, group.size, expand_index(consumer, group))
    inner = [view for view in linears(program) if ".0." in view.weight or ".1." in view.weight]
    for view in inner:
        stored = program.tensor(view.weight)
        outputs_, inputs = stored.t().shape if view.transposed else stored.shape
        mask = torch.rand(stored.shape, generator=generator) < 0.6
        add_mask(program, view.weight, mask, view)
        branch = {
            f"{view.weight}_lora_a": torch.randn(3, inputs, generator=generator) * 0.1,
            f"{view.weight}_lora_b": torch.randn(outputs_, 3, generator=generator) * 0.1,
        }
        add_branch(program, view.weight, branch, 2.0, transposed=view.transposed)
        writer = Writer(program, before=view.node)
        shapes = {"count": (), "square": (inputs,), "gram": (inputs, inputs)}
        statistics = [
            writer.buffer(f"{view.weight}_probe_{name}", torch.zeros(shape))
            for name, shape in shapes.items()
        ]
        view.node.replace_input_with(view.x, writer.call(probe, view.x, *statistics))
    program.module.recompile()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_passes_insert_is_sliced_with_the_weights(family: str) -> None:
    program = traced(family)
    plain = [(g.kind, g.size, g.prunable) for g in groups(analyse(program))]
    _decorate(program)
    decorated = [g for g in groups(analyse(program)) if g.size != 3]
    assert sorted((g.kind, g.size, g.prunable) for g in decorated) == sorted(plain)
    ranks = [g for g in groups(analyse(program)) if g.size == 3]
    assert {g.kind for g in ranks} == {"other"}
    for seed in (1, 2):
        _, moved = prune(program, seed, ("channels",))
        assert moved < 1e-5
    for view in linears(program):
        stored = program.tensor(view.weight)
        if program.has(f"{view.weight}_mask"):
            inputs = stored.shape[0 if view.transposed else 1]
            assert program.tensor(f"{view.weight}_mask").shape == stored.shape
            assert program.tensor(f"{view.weight}_lora_a").shape == (3, inputs)
            assert program.tensor(f"{view.weight}_probe_gram").shape == (inputs, inputs)
            assert program.tensor(f"{view.weight}_probe_count").shape == ()
    for site in heads(analyse(program)):
        mask = program.tensor(f"{site.consumers[0].weight}_heads_mask")
        assert mask.shape == (site.size,)
        assert mask.dtype is torch.bool
