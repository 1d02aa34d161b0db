"""Another order of channels: the same function and text, and more of the score kept."""

from itertools import product

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears, out_in
from sparsify.tensors.masks import keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced as family_traced
from tests.ir.axes.masked import outputs


@pytest.mark.parametrize(
    ("family", "of"),
    [
        *product(["llama", "gpt2", "gemma3", "phi3"], ["channels", "hidden", "channels,hidden"]),
        ("mixtral", "hidden"),
        ("bert", "channels"),
    ],
)
def test_the_function_and_the_text_stay(family, of):
    program = family_traced(family)
    text, before = to_text(program), outputs(program, program.module)
    shapes = {path: value.shape for path, value in program.tensors()}
    weights = {view.weight: program.tensor(view.weight).clone() for view in linears(program)}
    parse(f"permute-channels{{of={of} score=magnitude}}").run(program)
    assert to_text(program) == text
    assert {path: value.shape for path, value in program.tensors()} == shapes
    assert largest_difference(outputs(program, program.module), before) <= 1e-5
    moved = [p for p, old in weights.items() if not torch.equal(program.tensor(p), old)]
    assert moved


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pattern", ["2:4", "2:8"])
def test_the_pattern_keeps_more(family, pattern):
    before = family_traced(family)
    after = before.clone()
    parse(f"permute-channels{{pattern={pattern} score=magnitude}}").run(after)
    assert kept(after, pattern) > kept(before, pattern)


def kept(program, pattern):
    """The sum of |W| that a pattern keeps of the matrices inside the layers."""
    total = 0.0
    for view in linears(program):
        if not view.weight.startswith(("lm_head", "transformer.wte")):
            size = out_in(view, program.tensor(view.weight).detach()).abs()
            total += float((size * keep_nm(size, Pattern.parse(pattern))).sum())
    return total


def test_statistics_must_be_taken_again(traced, text):
    program = traced("llama")
    steps = "insert-probes | calibrate{samples=4} | permute-channels"
    parse(steps).run(program, Context(data=text))
    assert "stats" not in program.features
    with pytest.raises(PipelineError, match=r"needs \['stats'\]"):
        parse("insert-masks | choose-masks{score=wanda pattern=2:4}").run(program)
    again = "calibrate{samples=4} | insert-masks | choose-masks{score=wanda pattern=2:4}"
    parse(again).run(program, Context(data=text))


def test_masks_of_another_order_are_refused():
    program = parse("insert-masks").run(family_traced("llama"))
    with pytest.raises(PipelineError, match="cannot run while the program has"):
        parse("permute-channels{score=magnitude}").run(program)


def test_axes_that_no_target_reads():
    with pytest.raises(OptionError, match="no target reads channels that can be put in another"):
        parse("permute-channels{of=channels pattern=2:4 score=magnitude targets=*q_proj*}").run(
            family_traced("llama")
        )
