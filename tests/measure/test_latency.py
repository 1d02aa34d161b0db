"""The structure of a comparison and its inputs; speeds are never asserted."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import DataError, OptionError
from sparsify.measure.inputs import Shape, model_inputs
from sparsify.measure.latency import compare, open_session, ratios, to_json, turn
from sparsify.measure.machine import machine, machine_line, sets


def write_model(path, width):
    """An embedding table `[20, width]` looked up by `input_ids [batch, length]`."""
    table = numpy_helper.from_array(np.ones((20, width), np.float32), "table")
    node = helper.make_node("Gather", ["table", "input_ids"], ["states"])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    states = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "length", width])
    graph = helper.make_graph([node], "lookup", [ids], [states], [table])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.fixture
def paths(tmp_path):
    return {
        "dense": write_model(tmp_path / "a.onnx", 8),
        "sparse": write_model(tmp_path / "b.onnx", 4),
    }


def test_a_comparison_has_a_row_for_every_variant_and_shape(paths):
    shapes = [Shape(1, 4), Shape(2, 1)]
    timings = compare(paths, "dense", shapes, vocabulary=20, rounds=6, warmup=1)
    assert [(t.name, t.batch, t.tokens) for t in timings] == [
        ("dense", 1, 4), ("sparse", 1, 4), ("dense", 2, 1), ("sparse", 2, 1),
    ]  # fmt: skip
    for timing in timings:
        assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
        assert 0 < timing.ratio_low <= timing.ratio <= timing.ratio_high
    for timing in timings[::2]:
        assert (timing.ratio_low, timing.ratio, timing.ratio_high) == (1, 1, 1)
    stored = to_json(timings)
    assert stored["machine"] == machine()
    assert [row["past"] for row in stored["timings"]] == [0] * 4


def test_ratios_are_paired_by_round():
    baseline = np.array([2.0, 20.0, 200.0])
    assert ratios(baseline / 2, baseline) == (2, 2, 2)
    median, low, high = ratios(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    assert (median, low, high) == pytest.approx((2.0, 1.2, 2.8))


def test_rounds_begin_with_another_variant_each_time():
    assert [turn("abc", number) for number in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"],
    ]  # fmt: skip


def test_a_session_has_the_threads_it_was_given(paths):
    options = open_session(paths["dense"], threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def entry(name, kind, *shape):
    return SimpleNamespace(name=name, type=f"tensor({kind})", shape=list(shape))


def test_a_decode_graph_gets_a_cache_and_positions_that_count_on():
    wanted = [
        entry("input_ids", "int64", "b", "t"),
        entry("attention_mask", "int64", "b", "all"),
        entry("position_ids", "int32", "b", "t"),
        entry("token_type_ids", "int64", "b", "t"),
        entry("past_key_values.0.key", "float16", "b", 3, "past", 5),
        entry("pixel_values", "float", "b", 3, 6, 6),
    ]
    feeds = model_inputs(wanted, Shape(2, 1, past=4), 10, 0, "a.onnx")
    assert feeds["input_ids"].shape == (2, 1)
    assert feeds["input_ids"].max() < 10
    assert feeds["attention_mask"].tolist() == [[1] * 5] * 2
    assert feeds["position_ids"].tolist() == [[4], [4]]
    assert feeds["token_type_ids"].tolist() == [[0], [0]]
    assert feeds["past_key_values.0.key"].shape == (2, 3, 4, 5)
    assert feeds["pixel_values"].shape == (2, 3, 6, 6)
    kinds = [feeds[item.name].dtype.name for item in wanted]
    assert kinds == ["int64", "int64", "int32", "int64", "float16", "float32"]


def test_two_graphs_get_the_same_tokens_whatever_else_they_take():
    ids = entry("input_ids", "int64", "b", "t")
    cache = entry("past_key_values.0.key", "float", "b", 3, "past", 5)
    shape = Shape(2, 9, past=1)
    first = model_inputs([ids], shape, 50, 3, "a.onnx")["input_ids"]
    second = model_inputs([cache, ids], shape, 50, 3, "b.onnx")["input_ids"]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, model_inputs([ids], shape, 50, 4, "a.onnx")["input_ids"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"baseline": "dence"}, "no variant is called 'dence'; did you mean 'dense'?"),
        ({"rounds": 0}, "0 rounds cannot be measured; use 1 or more"),
        ({"threads": 0}, "0 threads cannot be measured; use 1 or more"),
        ({"shapes": []}, "0 shapes cannot be measured; use 1 or more"),
    ],
)
def test_a_comparison_that_cannot_be_meant_is_refused(paths, change, sentence):
    arguments = {"baseline": "dense", "shapes": [Shape()], "vocabulary": 20, **change}
    with pytest.raises(OptionError) as error:
        compare(paths, **arguments)
    assert str(error.value) == sentence


def test_a_missing_a_damaged_and_a_strange_file_are_told(tmp_path):
    missing, damaged = tmp_path / "missing.onnx", tmp_path / "damaged.onnx"
    damaged.write_bytes(b"nothing")
    with pytest.raises(DataError) as error:
        open_session(missing)
    assert str(error.value) == f"the ONNX file '{missing}' does not exist; export the model first"
    with pytest.raises(DataError) as error:
        open_session(damaged)
    assert str(error.value).startswith(f"ONNX Runtime cannot open '{damaged}': ")
    with pytest.raises(DataError) as error:
        model_inputs([entry("words", "string", "b")], Shape(), 9, 0, "a.onnx")
    assert str(error.value) == (
        "'a.onnx' takes an input 'words' of tensor(string), "
        "which has no made-up value; measure it by hand"
    )


def test_the_machine_is_told_in_one_line():
    facts = machine()
    assert all(isinstance(value, str) for value in facts.values())
    assert facts["cpu"]
    assert int(facts["cores"]) >= 1
    line = machine_line(facts)
    assert f"onnxruntime {facts['onnxruntime']}" in line
    assert "\n" not in line
    assert sets("sse avx2 fma avx512_vnni avx512f") == ["avx2", "avx512f", "avx512_vnni"]
