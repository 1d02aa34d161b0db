"""Weights in stacks: told apart, and said by passes that are about linears."""

import pytest

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.ir.views.stacks import stacks
from tests.ir.axes.families import traced as family_traced


def test_experts_are_stacks_and_convolutions_are_none(traced):
    found = [path.rpartition(".")[2] for path in stacks(family_traced("mixtral"))]
    assert sorted(found) == ["down_proj", "down_proj", "gate_up_proj", "gate_up_proj"]
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
    program, report = family_traced("mixtral"), Report()
    whole = sum(value.numel() for value in program.module.parameters())
    stacked = sum(stacks(program).values())
    assert stacked > whole / 2
    parse(pipeline).run(program, Context(), report=report)
    said = (
        f"4 stacks of weights, as of experts, are no linears and stay as they are: {stacked:,} of "
    )
    assert said in report.rows[0].note
    if "pack" in pipeline:
        assert said in report.rows[-1].note


def test_experts_alone_are_masked_without_a_word():
    report = Report()
    parse("insert-masks{of=experts}").run(family_traced("mixtral"), Context(), report=report)
    assert not report.rows[0].note
