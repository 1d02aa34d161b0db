"""A program without the rounding of its inputs, and whether two roundings agree."""

import pytest
import torch

from sparsify import Context, parse
from sparsify.ir.run.agreement import strange_rounding
from sparsify.ir.run.double import in_double, is_rounding
from sparsify.ir.run.unrounded import rounds_inputs, unrounded_outputs
from sparsify.ir.views.linear import effective_weight, linears
from sparsify.ir.views.packed import (
    block_weights,
    packed_linears,
    unblocked_weight,
    unpacked_weight,
)

TWO_OF_FOUR = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
ROUNDED = "insert-quantizers{values=int4 group=32} | choose-scales"
PIPELINES = {
    "quantizers": f"{TWO_OF_FOUR} | {ROUNDED}",
    "packed": f"{TWO_OF_FOUR} | {ROUNDED} | pack-nm{{values=int4}}",
    "blocks": f"{ROUNDED} | pack-dense",
}


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_left_is_the_model_with_its_rounded_weights(name, build, traced):
    program = parse(PIPELINES[name]).run(traced("llama"), Context())
    weights = {view.weight: unpacked_weight(program, view) for view in packed_linears(program)}
    weights |= {view.codes: unblocked_weight(program, view) for view in block_weights(program)}
    weights |= {
        view.weight: effective_weight(program, view) for view in linears(program) if view.quantizer
    }
    model = build("llama")
    with torch.no_grad():
        for path, value in weights.items():
            model.get_parameter(path.rsplit(".", 1)[0] + ".weight").copy_(value)
        wanted = model(**program.sample)[0]
    found = unrounded_outputs(program, program.sample)[0]
    assert len(weights) == 14
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (program.run()[0] - wanted).abs().max() > 1e-4 * wanted.abs().max()
    assert rounds_inputs(program)
    double = in_double(program, program.sample)[0]
    assert (double - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert is_rounding(program, program.sample, (found,), (wanted,))


def test_nothing_rounds_in_a_float_program(traced):
    program = traced("llama")
    assert not rounds_inputs(program)
    assert torch.equal(unrounded_outputs(program, program.sample)[0], program.run()[0])


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_two_roundings_agree_where_they_move_no_more_than_rounding_does(name, traced):
    program = parse(PIPELINES["packed"]).run(traced(name), Context())
    own, sample = program.run(), program.sample
    smooth = unrounded_outputs(program, sample)
    draw = torch.Generator().manual_seed(0)

    def other(size):
        """Outputs as much beside the unrounded ones as the program's own, times `size`, the other way."""
        return tuple(
            s + size * (a - s).abs().max() * (2 * torch.rand(a.shape, generator=draw) - 1)
            for a, s in zip(own, smooth, strict=True)
        )

    assert strange_rounding(program, sample, own, own) == ""
    assert strange_rounding(program, sample, own, other(1.0)) == ""
    shorter = tuple(value[:1] for value in own)
    assert "is wanted" in strange_rounding(program, sample, own, shorter)
    what = "loss a token" if name == "llama" else program.source.outputs[0]
    assert strange_rounding(program, sample, own, other(30.0)).startswith(f"the {what} moves by")
