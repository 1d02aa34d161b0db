"""Outputs in double precision, and what rounding alone can explain."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsify import Context
from sparsify.engine.contract import Moves, Pass, effect
from sparsify.engine.pipeline import Pipeline
from sparsify.errors import LawError
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.run.double import in_double, is_rounding
from sparsify.ir.views.linear import linears

aten = torch.ops.aten


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_outputs_are_those_of_the_model_in_double(name, build, traced):
    program, model = traced(name), build(name).double()
    batch = {key: value for key, value in program.sample.items()}
    wanted = model(**batch)[0]
    found = in_double(program, batch)[0]
    assert found.dtype == torch.float64
    assert (
        found - wanted
    ).abs().max() < 1e-6 * wanted.abs().max()  # norms keep float32 in the model
    assert program.run()[0].dtype == torch.float32


def test_rounding_is_told_from_error(traced):
    program = traced("llama")
    own = program.run()
    noise = (in_double(program, program.sample)[0] - own[0]).abs().max()
    near = own[0] + 2 * noise * torch.sign(torch.randn(own[0].shape))
    assert is_rounding(program, program.sample, own, (near,))
    assert not is_rounding(program, program.sample, own, (own[0] + 20 * noise,))
    wrong = program.clone()
    with torch.no_grad():  # one scale of one layer, a ten-thousandth off
        wrong.tensor("model.layers.0.mlp.up_proj.weight").mul_(1 + 1e-4)
    assert not is_rounding(program, program.sample, own, wrong.run())


@dataclass(frozen=True)
class Thirds(Pass):
    """Compute every linear as a third of three times itself, or of a little more."""

    name: ClassVar[str] = "thirds"
    moves: ClassVar[Moves] = Moves(graph=True, tolerance=1e-12)
    more: float = 0.0

    def effect(self):
        return effect()

    def rewrite(self, program, context):
        for view in linears(program):
            writer = Writer(program, after=view.node)
            thrice = writer.call(aten.mul.Tensor, view.node, 3.0 + self.more)
            redirect(view.node, writer.call(aten.div.Tensor, thrice, 3.0), but=(thrice,))
        return len(linears(program))


def test_a_pass_may_round_otherwise_than_its_bound_but_not_be_wrong(traced):
    report = Pipeline([Thirds()])
    assert report.run(traced("llama"), Context()) is not None
    with pytest.raises(LawError, match="outputs moved by"):
        Pipeline([Thirds(more=1e-3)]).run(traced("llama"), Context())
