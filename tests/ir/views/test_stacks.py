"""Matrices of experts among the products, and stacks of weights that are none: told apart, and said."""

import pytest
import torch
from torch import nn

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears, out_in, products
from sparsify.ir.views.stacks import stacks, tokens_of
from tests.ir.axes.families import traced as family_traced


class Mixed(nn.Module):
    """Every token through a mean of matrices by shares of its own, which is no product of groups of rows."""

    def __init__(self):
        super().__init__()
        self.shares = nn.Linear(16, 3)
        self.bank = nn.Parameter(torch.randn(3, 16, 16) / 4)

    def forward(self, x):
        shares = self.shares(x).softmax(-1)
        return torch.einsum("bti,eio,bte->bto", x, self.bank, shares)


def mixed():
    torch.manual_seed(0)
    return trace(Mixed(), {"x": torch.randn(2, 5, 16)})


def test_experts_are_products_of_a_matrix_each():
    program = family_traced("mixtral")
    found = [view for view in products(program) if view.stacked]
    names = [view.weight.rpartition(".")[2] for view in found]
    assert names == ["gate_up_proj", "down_proj"] * 2
    assert {view.weight for view in found}.isdisjoint(view.weight for view in linears(program))
    for view in found:
        assert program.tensor(view.weight).dim() == 3
        assert out_in(view, program.tensor(view.weight)).shape[-1] == view.x.meta["val"].shape[-1]
        assert view.ends is not None
        assert view.reader.target is torch.ops.aten.transpose.int
    assert not stacks(program)
    assert len(stacks(program, experts=True)) == 4


def test_both_products_of_a_layer_multiply_rows_of_the_same_tokens():
    program = family_traced("mixtral")
    found = [tokens_of(program, view) for view in products(program) if view.stacked]
    assert found[0] is found[1] is not found[2] is found[3]
    assert None not in found
    assert tokens_of(program, linears(program)[0]) is None


def test_stacks_that_no_rows_are_told_apart_for_are_none(traced):
    assert list(stacks(mixed())) == ["bank"]
    assert not stacks(traced("llama"))
    assert not stacks(family_traced("vit"))


@pytest.mark.parametrize(
    "pipeline",
    [
        "insert-masks",
        "insert-quantizers{values=int8}",
        "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm",
    ],
)
def test_what_stays_whole_is_said(pipeline):
    program, report = mixed(), Report()
    parse(pipeline).run(program, Context(), report=report)
    said = "1 stacks of weights, as of experts, are no linears and stay as they are: 768 of "
    assert said in report.rows[0].note
    if "pack" in pipeline:
        assert said in report.rows[-1].note


@pytest.mark.parametrize("pipeline", ["insert-adapters", "insert-masks | insert-slorb{k=16}"])
def test_passes_that_leave_experts_out_say_so(pipeline):
    report = Report()
    parse(pipeline).run(family_traced("mixtral"), Context(), report=report)
    assert "4 stacks of weights, as of experts" in report.rows[-1].note


def test_experts_alone_are_masked_without_a_word():
    report = Report()
    parse("insert-masks{of=experts}").run(family_traced("mixtral"), Context(), report=report)
    assert not report.rows[0].note
