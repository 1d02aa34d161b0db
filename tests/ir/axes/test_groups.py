"""What groups say of a program: kinds, places, numbers of heads, scores, reasons for pins."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import OptionError
from sparsify.ir.axes.groups import Group, groups, heads
from sparsify.ir.axes.shrink.choice import expand_index, group_scores, reduce, spread
from sparsify.ir.axes.summary import in_words, rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace
from tests.ir.axes.families import traced


class Bottleneck(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.middle = middle
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(x)))


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class Best(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.topk(3).values.sum(-1, keepdim=True)


def _small(middle: nn.Module) -> Program:
    return trace(Bottleneck(middle), {"x": torch.randn(3, 6)}, {"x": {0: "batch"}})


def _middle(program: Program) -> Group:
    (group,) = [g for g in groups(analyse(program)) if g.size == 10]
    return group


def test_an_op_without_a_rule_pins_and_says_so() -> None:
    sides = [g for g in groups(analyse(_small(Flip()))) if g.size == 10]
    assert [g.pins for g in sides] == [("op flip has no axis rule",)] * 2
    assert not any(g.prunable for g in sides)


@pytest.mark.parametrize(
    ("middle", "pin"),
    [
        (nn.LayerNorm(10), "normalised by layer_norm at layer_norm"),
        (nn.Softmax(-1), "softmax.int at softmax runs over it"),
        (Best(), "topk at topk runs over it"),
    ],
)
def test_ops_over_a_whole_axis_pin_it(middle: nn.Module, pin: str) -> None:
    assert _middle(_small(middle)).pins == (pin,)


def test_inputs_and_outputs_are_pinned() -> None:
    pins = [g.pins for g in groups(analyse(_small(nn.ReLU()))) if g.size == 6]
    assert pins == [("input x",), ("graph output",)] or pins == [("graph output",), ("input x",)]


def test_channels_have_a_nonlinearity_inside_and_the_rank_of_a_map_has_none() -> None:
    channels = _middle(_small(nn.ReLU()))
    assert (channels.kind, channels.prunable) == ("channels", True)
    assert [(m.path, m.dim) for m in channels.members] == [
        ("up.weight", 0),
        ("up.bias", 0),
        ("down.weight", 1),
    ]
    (consumer,) = channels.consumers
    assert (consumer.weight, consumer.dim, consumer.size) == ("down.weight", 1, 10)
    assert channels.key == ("up.weight", 0, 0)
    assert _middle(_small(nn.Identity())).kind == "other"


def test_kinds_of_a_decoder() -> None:
    found = {}
    for group in groups(analyse(traced("llama"))):
        found.setdefault(group.kind, []).append((group.size, group.prunable))
    assert found == {
        "vocabulary": [(60, False)],
        "other": [(60, False)],  # the head of its own: pinned as graph output
        "hidden": [(64, True)],
        "kv": [(4, True)] * 2,
        "heads": [(2, True)] * 2,
        "rotary": [(4, True)],
        "head_dim": [(8, True)] * 2,
        "channels": [(48, True)] * 2,
    }


def test_heads_are_numbered_by_kv_group() -> None:
    site = heads(analyse(traced("llama")))[0]
    (consumer,) = site.consumers
    assert consumer.weight == "model.layers.0.self_attn.o_proj.weight"
    expected = torch.arange(8).repeat_interleave(8)
    assert torch.equal(expand_index(consumer, site), expected)
    assert site.kv is not None
    assert torch.equal(expand_index(consumer, site.kv), expected // 2)
    assert {(m.path.split(".")[-2], m.dim) for m in site.members} == {("q_proj", 0), ("o_proj", 1)}


def test_fused_projections_carry_the_heads_three_times() -> None:
    program = traced("gpt2")
    site = heads(analyse(program))[0]
    path = "transformer.h.0.attn.c_attn.weight"
    scores = program.tensor(path).detach().abs()
    by_head = scores.sum(0).reshape(3, 4, 16).sum((0, 2))
    torch.testing.assert_close(group_scores(site, path, 1, scores), by_head)


def test_scores_of_query_heads_and_kv_groups() -> None:
    program = traced("llama")
    site = heads(analyse(program))[1]
    prefix = "model.layers.1.self_attn."
    columns = program.tensor(prefix + "o_proj.weight").detach().square()
    expected = columns.sum(0).reshape(8, 8).sum(1)
    found = group_scores(site, prefix + "o_proj.weight", 1, columns)
    torch.testing.assert_close(found, expected)
    found = group_scores(site, prefix + "o_proj.weight", 1, columns.sum(0))
    torch.testing.assert_close(found, expected)
    keys = program.tensor(prefix + "k_proj.weight").detach().square()
    assert site.kv is not None
    found = group_scores(site.kv, prefix + "k_proj.weight", 0, keys)
    torch.testing.assert_close(found, keys.sum(1).reshape(4, 8).sum(1))
    with pytest.raises(OptionError, match=r"is not in dimension 0 of 'model\.layers\.1\."):
        group_scores(site, prefix + "k_proj.weight", 0, keys)


def test_reduce_and_spread_leave_out_what_belongs_to_no_group() -> None:
    index = torch.tensor([0, -1, 1, 0])
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert reduce(index, values, 2).tolist() == [9.0, 4.0]
    assert spread(index, torch.tensor([False, True]), True).tolist() == [False, True, True, False]


def test_rows_for_people() -> None:
    table = {row.kind: row for row in rows(analyse(traced("bert")))}
    channels = next(row for row in rows(analyse(traced("bert"))) if row.size == "48")
    assert channels.kind == "channels"
    assert (channels.size, channels.count, channels.pins) == ("48", 2, ())
    assert channels.where == ("bert.encoder.layer.0-1",)
    assert channels.tensors == ("dense",)
    assert (table["layers"].count, table["blocks"].count) == (2, 4)
    assert table["vocabulary"].pins == ("entries are looked up by number",)
    grouped = next(row for row in rows(analyse(traced("llama"))) if row.kind == "heads")
    assert (grouped.size, grouped.tensors) == (
        "8 = 4 x 2",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    )


def test_pins_in_words() -> None:
    pins = ["normalised by layer_norm at layer_norm", "normalised by layer_norm at layer_norm_1"]
    assert in_words(pins) == ("a norm runs over it",)
    assert in_words(["op flip has no axis rule"]) == ("no rule for the op flip",)
    assert in_words(["op view at view_1 has a form without a rule"]) == (
        "no rule for this form of the op view",
    )
    assert in_words(["looked up by embedding at embedding_2", "graph output"]) == (
        "entries are looked up by number",
        "an output of the model",
    )
