"""A program is captured once for torch.onnx, and a second time only where ops must be taken apart."""

import pytest
import torch

from sparsify.ir.lower.captured import captured

ATEN = torch.ops.aten


def ops(exported):
    return [node.target for node in exported.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "routed"])
def test_it_computes_what_the_program_computes(family, traced):
    program = traced(family)
    found = captured(program)
    assert found.run_decompositions({ATEN.lerp.Scalar: None}) is found
    assert {ATEN.to.device, ATEN.to.dtype, ATEN.__and__.Tensor}.isdisjoint(ops(found))
    outputs = found.module()(**program.sample)
    for ours, theirs in zip(outputs, program.run(program.sample), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_shapes_that_change_nothing_leave(traced):
    """The attention of these models reshapes what it gives to the shape that it has."""
    program = traced("bert")
    kept, dropped = (ops(captured(program, apart=apart)) for apart in (True, False))
    gone = kept.count(ATEN.reshape.default) - dropped.count(ATEN.reshape.default)
    assert gone == 2  # one a layer


# What torch says of its own trees when it copies them.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_op_of_the_table_is_taken_apart(traced):
    program = traced("llama")
    found = captured(program)
    table = {ATEN.silu.default: lambda x: x * torch.sigmoid(x)}
    again = found.run_decompositions(table)
    assert again is not found
    assert ATEN.silu.default in ops(found)
    assert ATEN.silu.default not in ops(again)
