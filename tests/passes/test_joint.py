"""choose-masks{score=sparsegpt scales=...}: pruned and rounded in one sweep, and packed as it stands."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.views.linear import composed_weight, effective_weight, linears, out_in
from sparsify.ir.views.packed import packed_linears, unpacked_weight
from sparsify.recipes import recipe

SEEN = "insert-probes{gram=true} | calibrate{samples=40} | insert-masks | insert-quantizers{%s}"
JOINT = f"{SEEN} | choose-masks{{score=sparsegpt pattern=2:4 scales=absmax}}"


def run(program, pipeline, data=None):
    return parse(pipeline).run(program, Context(data=data))


@pytest.mark.parametrize(
    ("name", "values"), [("block", "int4"), ("block", "int8"), ("gpt2", "int4")]
)
def test_packing_changes_nothing(name, values, traced, tokens, text):
    options, data = f"values={values} group=32", tokens if name == "block" else text
    program = run(traced(name), f"{JOINT % options} | fold-masks", data)
    stored = {
        view.weight: out_in(view, program.tensor(view.weight).detach()).clone()
        for view in linears(program)
        if view.quantizer is not None
    }
    for view in linears(program):
        if view.quantizer is not None:
            assert bool(program.tensor(view.input_quantizer.on))
            assert torch.equal(out_in(view, effective_weight(program, view)), stored[view.weight])
    run(program, f"pack-nm{{values={values}}}")
    found = packed_linears(program)
    assert len(found) == len(stored)
    for view in found:
        weight = stored[view.weight.removesuffix("_packed")]
        assert torch.equal(unpacked_weight(program, view), weight)


def test_with_a_branch_the_sum_lies_on_the_grid(traced, tokens):
    program = run(
        traced("block"), f"insert-lora{{rank=2}} | {SEEN % 'values=int4 group=32'}", tokens
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for view in linears(program):
            if view.branch is not None:
                b = program.tensor(view.branch.b)
                b.copy_(0.05 * torch.randn(b.shape, generator=generator))
    run(program, "choose-masks{score=sparsegpt pattern=2:4 scales=mse}", tokens)
    views = [view for view in linears(program) if view.quantizer is not None]
    assert views
    for view in views:
        before, after = composed_weight(program, view), effective_weight(program, view)
        assert torch.allclose(before, after, rtol=0, atol=1e-6)
        assert int((after == 0).sum()) >= after.numel() // 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("score=magnitude pattern=2:4 scales=mse", "rounds what score=sparsegpt keeps of weights"),
        ("score=wanda sparsity=0.5 scales=mse", "put choose-scales behind any other choice"),
        ("of=blocks sparsity=0.5 scales=mse", "rounds what score=sparsegpt keeps of weights"),
    ],
)
def test_scales_are_for_sparsegpt_alone(options, sentence, traced, tokens):
    before = "insert-probes | calibrate | insert-quantizers | insert-masks{of=weights,blocks}"
    with pytest.raises((OptionError, PipelineError)) as caught:
        run(traced("block"), f"{before} | choose-masks{{{options}}}", tokens)
    assert sentence in str(caught.value)


def test_a_weight_without_quantizer_is_named(traced, tokens):
    pipeline = JOINT % "values=int4 group=32 targets=up"
    with pytest.raises(OptionError, match=r"@query.weight has no quantizer, which scales=absmax"):
        run(traced("block"), pipeline, tokens)
    with pytest.raises(PipelineError, match=r"needs \['quantizers'\]"):
        run(traced("block"), (JOINT % "").replace(" | insert-quantizers{}", ""), tokens)


def test_the_recipe_ends_in_packed_weights(traced, text):
    steps = recipe("sparsegpt-int4").text.replace("samples=128", "samples=8")
    program = run(traced("gpt2"), steps, text)
    assert {view.layout.values for view in packed_linears(program)} == {"int4"}
    assert program.features == {"packed"}
