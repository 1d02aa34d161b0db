"""Pruned equals masked, for every family, with other sizes in every layer, twice in a row."""

import pytest
import torch

from sparsify.ir.axes.groups import groups, heads
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import FAMILIES, traced
from tests.ir.axes.masked import outputs, prune

# Families that are pruned, analysed again and pruned again.
TWICE = ("llama", "phi3", "gpt2", "bert-eager")


def _size(program: Program) -> int:
    return sum(value.numel() for value in program.module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_equals_masked(family: str) -> None:
    program = traced(family)
    dense, before = outputs(program, program.module), _size(program)
    rounds = [(1, ("channels", "head_dim")), (2, ("channels",))]
    for seed, kinds in rounds if family in TWICE else rounds[:1]:
        keep, moved = prune(program, seed, kinds)
        assert moved < 1e-5
        assert len(keep.leaves) + len(keep.joint) >= 3
        assert _size(program) < before
        before = _size(program)
    assert largest_difference(dense, outputs(program, program.module)) > 1e-2


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "bert-eager"])
def test_every_layer_offers_its_heads_and_channels(family: str) -> None:
    grouped = family in ("llama", "phi3")
    analysis = analyse(traced(family))
    found = heads(analysis)
    assert [(site.kv_size, site.rep_size) for site in found] == [(4, 2) if grouped else (4, 1)] * 2
    assert all(site.prunable and len(site.consumers) == 1 for site in found)
    channels = [group for group in groups(analysis) if group.kind == "channels"]
    assert [group.size for group in channels if group.prunable] == [48, 48]
    widths = [group for group in groups(analysis) if group.kind == "hidden"]
    assert len(widths) == 1
    assert widths[0].size == 64
    assert widths[0].prunable
    assert len(widths[0].consumers) >= 5


def test_rotary_pairs_are_one_group_of_all_layers() -> None:
    program = traced("llama")
    (rotary,) = [g for g in groups(analyse(program)) if g.kind == "rotary"]
    assert rotary.size == 4
    assert rotary.prunable
    # No input of a linear carries it: queries and keys meet inside attention.
    assert rotary.consumers == ()
    assert len({member.path for member in rotary.members}) == 5


def test_nothing_writes_an_old_head_count_into_the_graph() -> None:
    program = traced("opt")
    prune(program, 3, ("channels",))
    for site in heads(analyse(program)):
        (consumer,) = site.consumers
        assert program.tensor(consumer.weight).shape[consumer.dim] == site.size * 16
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            fixed = [size for size in node.args[1] if isinstance(size, int) and size > 1]
            value = node.meta["val"]
            assert all(size in value.shape for size in fixed)
