"""Parameters by the piece of the graph that reads them: each in one unit, or in none."""

import torch

from sparsify.ir.run.segments import run_segments, segments
from sparsify.train.units import LayerUnits


def test_a_unit_holds_what_one_piece_alone_reads(traced):
    program = traced("llama")
    units = LayerUnits(program)
    *pieces, last = segments(program.module)
    assert len(units.each) == len(pieces) > 2
    learned = dict(program.module.named_parameters(remove_duplicate=False))
    read = [path for path in last.tensors if path in learned]
    assert read
    assert not set(read) & set(units.paths)
    held = [id(value) for unit in units.each for value in unit.parameters()]
    assert len(held) == len(set(held)) == len(units.paths)
    rest = sum(value.numel() for path, value in learned.items() if path not in units.paths)
    assert rest < 0.5 * sum(value.numel() for value in learned.values())
    for path in units.paths:
        assert units.tensor(path) is program.tensor(path)
    assert units.tensor(read[0]) is None


def test_a_table_that_is_tied_to_the_head_is_in_no_unit(traced):
    program = traced("gpt2")
    units = LayerUnits(program)
    tied = [path for path in (*program.aliases, *program.aliases.values()) if program.has(path)]
    assert tied
    assert not set(tied) & set(units.paths)


def test_pieces_are_run_inside_their_units_and_give_what_the_graph_does(traced):
    program = traced("llama")
    units, calls = LayerUnits(program), []
    for number, unit in enumerate(units.each):
        unit.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    inputs = program.complete(program.sample)
    found = run_segments(program.module, inputs, every=None, units=units)
    assert calls == list(range(len(units.each)))
    wanted = program.module(**inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
