"""A program run as far as some values, in one piece or in several."""

import pytest
import torch

from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import keeping_products, run_segments, run_to, segments


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "routed", "block"])
def test_in_one_piece_the_outputs_are_the_modules(name, traced):
    program = traced(name)
    (output,) = program.graph.find_nodes(op="output")
    found = run_to(program.module, program.sample, output.args[0])
    assert all(torch.equal(a, b) for a, b in zip(found, program.run(), strict=True))


def test_only_what_is_wanted_is_run(traced):
    program = traced("llama")
    head = find_head(program)
    (piece,) = segments(program.module, wanted=[head.x], whole=True)
    every = sum(len(each.calls) for each in segments(program.module))
    assert len(piece.calls) == every - 1
    assert piece.gives == (head.x.name,)
    cut = segments(program.module, wanted=[head.x])
    assert len(cut) == len(segments(program.module))
    assert sum(len(each.calls) for each in cut) == every - 1


def test_values_are_let_go_after_their_last_use(traced):
    program = traced("llama")
    (piece,) = segments(program.module, wanted=[find_head(program).x], whole=True)
    freed = [name for call in piece.calls for name in call.frees]
    made = {call.name for call in piece.calls} | set(piece.reads)
    assert len(freed) == len(set(freed))
    assert set(freed) == made - set(piece.gives)


@pytest.mark.parametrize(
    "kept", [{}, {"context_fn": keeping_products}], ids=["layers", "selective"]
)
def test_recomputed_values_have_the_same_gradients(kept, traced):
    program = traced("llama")
    head, found = find_head(program), []
    for run in (
        lambda: run_to(program.module, program.sample, head.reads),
        lambda: run_segments(program.module, program.sample, wanted=head.reads, **kept),
    ):
        x, weight = run()
        (x.square().mean() + weight.square().mean()).backward()
        found.append([p.grad.clone() for p in program.module.parameters()])
        program.module.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
