"""Opening ONNX files: which need our kernels, and what is said when those are not there."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsify
from exporters.onnx_graph.nm_function import function
from sparsify import native
from sparsify.errors import DataError, KernelError
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.runtime import session
from sparsify.runtime.session import has_packed_weights, onnxruntime_session

LAYOUT = {"n": 2, "m": 4, "in_features": 32, "out_features": 8, "group": 0, "layout": 1}


def dense_model(path):
    """`y = x + 1`."""
    one = numpy_helper.from_array(np.ones(32, np.float32), "one")
    return save(path, helper.make_node("Add", ["x", "one"], ["y"]), [one], 32)


def packed_model(path):
    """A packed weight of zeros: `y = b`."""
    weight = numpy_helper.from_array(np.zeros(544, np.uint8), "w")
    bias = numpy_helper.from_array(np.arange(8, dtype=np.float32), "b")
    node = helper.make_node(
        "NMLinear", ["x", "w", "b"], ["y"], domain="sparsify", values="float32", **LAYOUT
    )
    return save(path, node, [weight, bias], 8)


def save(path, node, weights, size):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", size])
    graph = helper.make_graph([node], "one", [x], [y], weights)
    opsets, functions = [helper.make_opsetid("", 18)], []
    if node.domain:
        opsets.append(helper.make_opsetid(node.domain, 1))
        functions.append(function(18))
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def no_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv(native.ENVIRONMENT, str(tmp_path / "none.so"))
    session._say.cache_clear()


def test_files_with_packed_weights_are_told_from_others(tmp_path):
    assert has_packed_weights(packed_model(tmp_path / "packed.onnx"))
    assert not has_packed_weights(dense_model(tmp_path / "dense.onnx"))


@pytest.mark.parametrize(
    "content",
    [b"", b"sparsify", b"\xff" * 40, b"\x42\x7f\x0a\x08sparsify"[:6], b"\x0b\x0c", Path(__file__)],
    ids=["empty", "word", "endless", "cut", "groups", "text"],
)
def test_other_files_have_none(content, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    assert not has_packed_weights(file)


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_it_runs_and_one_warning_says_so(tmp_path, caplog):
    path = packed_model(tmp_path / "packed.onnx")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            opened = sparsify.onnxruntime_session(path)
    assert [record.name for record in caplog.records] == ["sparsify"]
    said = caplog.messages[0]
    assert str(tmp_path / "none.so") in said
    assert said.endswith("until then packed weights are decoded in every run, right but slow")
    (y,) = opened.run(None, {"x": np.ones((2, 3, 32), np.float32)})
    assert np.array_equal(y, np.broadcast_to(np.arange(8), (2, 3, 8)))


@pytest.mark.usefixtures("no_kernels")
def test_kernels_can_be_required(tmp_path, caplog):
    with pytest.raises(KernelError, match=r"none\.so"):
        onnxruntime_session(packed_model(tmp_path / "packed.onnx"), require_kernels=True)
    onnxruntime_session(dense_model(tmp_path / "dense.onnx"), require_kernels=True)
    assert caplog.messages == []


def test_a_processor_without_fast_kernels_is_told(tmp_path, monkeypatch, caplog):
    session._say.cache_clear()
    monkeypatch.setattr(native, "require_library", lambda: tmp_path / "lib.so")
    monkeypatch.setattr(native, "isa", lambda: "reference")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="cannot open"):
        onnxruntime_session(packed_model(tmp_path / "packed.onnx"))
    assert caplog.messages == [
        "there are no fast kernels for this processor: packed weights take less memory here, but a "
        "dense model is faster"
    ]


def test_kernels_are_used_where_they_are(tmp_path, caplog):
    if native.library() is None:
        pytest.skip("the kernels are not built")
    opened = onnxruntime_session(packed_model(tmp_path / "p.onnx"), require_kernels=True)
    (y,) = opened.run(None, {"x": np.ones((1, 32), np.float32)[None]})
    assert np.array_equal(y[0, 0], np.arange(8))
    assert not any("decoded" in message for message in caplog.messages)


def test_threads_and_settings_reach_the_session(tmp_path):
    path = dense_model(tmp_path / "dense.onnx")
    opened = onnxruntime_session(path, threads=2, settings={"session.force_spinning_stop": "1"})
    options = opened.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"the ONNX file '.*none\.onnx' does not exist"):
        onnxruntime_session(tmp_path / "none.onnx")


def test_dense_and_packed_files_are_compared(tmp_path):
    paths = {
        "dense": dense_model(tmp_path / "dense.onnx"),
        "packed": packed_model(tmp_path / "packed.onnx"),
    }
    timings = compare(paths, "dense", [Shape(1, 3)], vocabulary=10, rounds=2, warmup=1)
    assert [timing.name for timing in timings] == ["dense", "packed"]
