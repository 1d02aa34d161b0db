"""What a program keeps of itself: facts that last until the graph or a tensor's type changes."""

import copy

import torch

from sparsify.ir.axes.walk import analyse
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Plan
from sparsify.ir.storage.document import _PLAN


def counted(program):
    """How often a fact is found from here on, and the program asked for it."""
    calls = []
    return calls, lambda: program.fact("nodes", lambda p: calls.append(1) or len(p.graph.nodes))


def test_a_fact_is_found_once(traced):
    program = traced("mlp")
    calls, ask = counted(program)
    assert ask() == ask() == len(program.graph.nodes)
    assert len(calls) == 1


def test_numbers_in_tensors_change_no_fact(traced):
    program = traced("mlp")
    calls, ask = counted(program)
    ask()
    with torch.no_grad():
        program.tensor("up.weight").mul_(2)
    program.put("up.weight", program.tensor("up.weight") + 1, trainable=True)
    ask()
    assert len(calls) == 1


def relu(program):
    return next(
        n for n in program.graph.nodes if n.op == "call_function" and "linear" in str(n.target)
    )


def test_every_change_of_graph_types_and_inputs_does(traced):
    program = traced("mlp")
    node = relu(program)
    weight = program.tensor("up.weight")

    def insert():
        made = Writer(program, after=node).call(torch.ops.aten.neg.default, node)
        redirect(node, made)

    def edit():
        neg = next(n for n in program.graph.nodes if "neg" in str(n.target))
        neg.target = torch.ops.aten.abs.default

    def drop():
        made = next(n for n in program.graph.nodes if "abs" in str(n.target))
        made.replace_all_uses_with(node)
        sweep(program)

    def buffer():
        program.put("up.weight", weight)

    def parameter():
        program.put("up.weight", weight, trainable=True)

    def half():
        program.put("up.weight", weight.half(), trainable=True)

    def name():
        dims = next(iter(program.dynamic.values()))
        dims[0] = "rows"

    calls, ask = counted(program)
    ask()
    for number, change in enumerate((insert, edit, drop, buffer, parameter, half, name), start=2):
        change()
        ask()
        ask()
        assert len(calls) == number, change.__name__


def test_copies_find_their_own_facts(traced):
    program = traced("mlp")
    analysis = analyse(program)
    assert analyse(program) is analysis
    for other in (program.clone(), copy.deepcopy(program), program.shared()):
        found = analyse(other)
        assert found is not analysis
        assert set(found.axes) == set(other.graph.nodes) - set(other.graph.find_nodes(op="output"))
    assert analyse(program, boundary=True) is not analysis


def test_the_reader_of_programs_knows_every_entry_of_a_plan():
    assert set(_PLAN) == set(Plan.__annotations__)
