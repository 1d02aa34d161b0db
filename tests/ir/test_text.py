import pytest

from sparsify.engine.pipeline import parse
from sparsify.ir.text import diff, header, line_of, to_text

MLP = """\
  %0 : f32[batch,length,8] = input x
  %1 : f32[batch,length,8] = layer_norm(%0, [8], @norm.weight, @norm.bias, 1e-05, False)
  %2 : f32[batch,length,12] = linear(%1, @up.weight, @up.bias)
  %3 : f32[batch,length,12] = gelu(%2)
  %4 : f32[batch,length,8] = linear(%3, @down.weight, @down.bias)
  %5 : f32[batch,length,8] = add.Tensor(%0, %4)
  %6 : f32[batch,length,5] = linear(%5, @head.weight)
  return [%6]
"""


def test_text_of_a_known_module(traced):
    assert to_text(traced("mlp")) == MLP


def test_header_names_the_model_and_its_features(traced):
    program = parse("insert-masks | insert-lora{rank=2}").run(traced("mlp"))
    assert header(traced("mlp")) == "program Mlp features {}"
    assert header(program) == "program Mlp features {lora, mask.weights}"


def test_sizes_are_symbolic_and_named(traced):
    lines = to_text(traced("block")).splitlines()
    assert lines[0] == "  %0 : i64[batch,length] = input input_ids"
    assert lines[1] == "  %1 : batch = sym_size.int(%0, 0)"
    assert lines[5] == "  %5 : f32[batch,length,4,4] = view(%4, [%1, %2, 4, 4])"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_text_holds_no_sample_size_and_no_address(family, traced):
    text = to_text(traced(family))
    assert "[2,13" not in text
    assert "0x" not in text
    assert "s0" not in text
    assert "[batch,length,64]" in text


def test_diff_shows_what_a_pass_added_and_nothing_else(traced):
    before = to_text(traced("mlp"))
    after = to_text(parse("insert-masks{targets=down}").run(traced("mlp")))
    changed = [x for x in diff(before, after, "step").splitlines() if x[0] in "+-"]
    assert changed[:2] == ["--- before step", "+++ after step"]
    assert "+  %4 : f32[8,12] = mul.Tensor(@down.weight, @down.weight_mask)" in changed
    assert not any("gelu" in line for line in changed)
    assert diff(before, before, "step") == ""


def test_line_of_a_node_and_of_a_tensor_read(traced):
    program = traced("mlp")
    lines = to_text(program).splitlines()
    for node in program.graph.nodes:
        line = lines[line_of(program, node)]
        if node.op == "get_attr":
            assert f"@{node.target}" in line
        elif node.op == "call_function":
            assert f"= {node.target.overloadpacket.__name__}" in line
