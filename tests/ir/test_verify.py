import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsify.engine.pipeline import parse
from sparsify.errors import VerifyError
from sparsify.ir import types
from sparsify.ir.verify import verify


def nodes_called(program, name):
    return [n for n in program.graph.nodes if n.op == "call_function" and name in str(n.target)]


def message(program):
    with pytest.raises(VerifyError) as caught:
        verify(program)
    return str(caught.value)


def test_good_programs_pass(family, traced):
    verify(traced(family))


@pytest.mark.parametrize("name", ["mlp", "block"])
def test_good_hand_made_programs_pass(name, traced):
    verify(traced(name))


def test_an_op_is_run_on_the_same_types_once(traced, monkeypatch):
    """A program, its clones and the graphs that share its tensors type each other's ops."""
    program = traced("llama")

    def again(*given, **named):
        raise AssertionError("run again")

    monkeypatch.setattr(types, "within_bounds", again)
    monkeypatch.setattr(FakeTensorMode, "from_tensor", again)
    for made in (program, program.clone(), program.shared()):
        verify(made)
    types.propagate(program.shared())
    program.put("lm_head.weight", torch.ones(301, 64), trainable=True)
    assert "run again" in message(program)


@pytest.mark.parametrize("trainable", [True, None])
def test_a_tensor_that_nobody_reads(trainable, traced):
    program = traced("mlp")
    program.put("up.extra", torch.ones(3), trainable=trainable)
    assert message(program) == (
        "tensor @up.extra is not read by the graph: the pass that orphaned it must delete it"
    )


def test_a_type_that_is_not_true_shows_the_lines_around(traced):
    program = traced("mlp")
    (gelu,) = nodes_called(program, "gelu")
    gelu.meta["val"] = gelu.meta["val"].to(torch.float64)
    lines = message(program).splitlines()
    assert lines[0].startswith("node gelu: its type says ('float64', [")
    assert ", running it gives ('float32', [" in lines[0]
    assert len(lines) == 8
    assert [line for line in lines[1:] if line.startswith(">")] == [
        ">   %3 : f64[batch,length,12] = gelu(%2)"
    ]
    assert lines[1].startswith("    %0 :")
    assert lines[-1].startswith("    %6 :")


def test_a_shape_that_is_not_true(traced):
    program = traced("mlp")
    program.put("up.weight", torch.ones(13, 8), trainable=True)
    program.put("up.bias", torch.ones(13), trainable=True)
    program.put("down.weight", torch.ones(8, 13), trainable=True)
    first = message(program).splitlines()[0]
    assert first == (
        "node up_weight: its type says ('float32', [12, 8]), running it gives ('float32', [13, 8])"
    )


def test_a_node_that_cannot_run(traced):
    program = traced("mlp")
    program.put("down.weight", torch.ones(8, 7), trainable=True)
    assert message(program).startswith("a node cannot be typed: ")


def test_a_node_without_a_type(traced):
    program = traced("mlp")
    (gelu,) = nodes_called(program, "gelu")
    del gelu.meta["val"]
    assert message(program).startswith("node gelu: its type says NoneType, running it gives ")


@pytest.mark.parametrize("target", [os.getcwd, torch.relu, torch.nn.functional.gelu, len])
def test_a_foreign_function(target, traced):
    program = traced("mlp")
    (gelu,) = nodes_called(program, "gelu")
    gelu.target = target
    first, *rest = message(program).splitlines()
    assert first == f"node gelu: call_function '{target}' is not an op of a program"
    assert any(line.startswith(">") for line in rest)


def test_a_foreign_kind_of_node(traced):
    program = traced("mlp")
    (gelu,) = nodes_called(program, "gelu")
    gelu.op, gelu.target = "call_method", "relu"
    assert message(program).startswith("node gelu: call_method 'relu' is not an op of a program")


def test_a_feature_that_the_graph_does_not_show(traced):
    program = traced("mlp")
    program.features = frozenset({"lora"})
    assert message(program) == "the program claims the features ['lora'], its graph shows []"


def test_a_feature_that_is_not_claimed(traced):
    program = parse("insert-masks").run(traced("mlp"))
    program.features = frozenset()
    assert (
        message(program) == "the program claims the features [], its graph shows ['mask.weights']"
    )


def test_a_feature_that_nobody_knows(traced):
    program = traced("mlp")
    program.features = frozenset({"magic"})
    assert message(program) == "no rule knows the features ['magic']"


def test_a_graph_out_of_order(traced):
    program = traced("mlp")
    (gelu,) = nodes_called(program, "gelu")
    (norm,) = nodes_called(program, "layer_norm")
    norm.prepend(gelu)
    assert message(program).startswith("the graph is malformed: ")


def test_a_models_own_buffer_called_mask_is_no_feature(traced):
    program = traced("mlp")
    node = next(n for n in program.graph.nodes if n.target == "norm.bias")
    program.put("causal_mask", program.tensor("norm.bias").detach().clone())
    node.target = "causal_mask"
    program.delete("norm.bias")
    program.module.recompile()
    verify(program)
