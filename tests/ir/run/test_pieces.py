"""Programs in pieces: the same function, and one wrong scale stands out."""

import pytest
import torch

from sparsify import Context, parse
from sparsify.ir.run.pieces import places, run_in_pieces, strange_piece
from sparsify.tensors.precision import largest_difference

PACKED = (
    "insert-masks | choose-masks{pattern=2:4} | fold-masks | insert-quantizers{values=int4 group=32} | "
    "choose-scales | pack-nm{values=int4} | insert-quantizers{values=int8 group=32 ends=true} | "
    "choose-scales | pack-dense"
)


@pytest.fixture
def program(traced):
    return parse(PACKED).run(traced("llama"), Context())


def test_pieces_are_the_program(program):
    own, given = run_in_pieces(program, program.sample)
    assert len(own.entering) == len(own.leaving) == len(given) == 15  # the head too
    assert largest_difference(program.run(), own.outputs) < 1e-5
    for place, x in own.entering.items():
        step = (x - given[place]).abs().max() / x.abs().max()
        assert 0 < step < 0.5 / 127 + 1e-6
    assert strange_piece(own, own, 0.0) == ""


def test_uses_of_one_weight_are_told_apart():
    uses = iter([("a", 1), ("b", 2), ("a", 3)])
    assert places(uses) == {("a", 0): 1, ("b", 0): 2, ("a", 1): 3}


@pytest.mark.parametrize("place", [("model.layers.1.mlp.up_proj.weight_packed", 0)])
def test_the_piece_that_differs_is_named(program, place):
    own, _ = run_in_pieces(program, program.sample)
    moved = dict(own.leaving)
    moved[place] = moved[place] * (1 + 1e-3)
    other = type(own)(own.outputs, own.entering, moved)
    said = strange_piece(own, other, 1e-4)
    assert f"output of the product with @{place[0]} differs by 0.001" in said
    assert strange_piece(own, other, 1e-2) == ""
    lost = type(own)(own.outputs, {**own.entering, place: torch.zeros(1)}, own.leaving)
    assert f"input of the product with @{place[0]} differs by inf" in strange_piece(own, lost, 1e-4)
