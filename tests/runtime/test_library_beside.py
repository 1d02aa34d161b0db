"""The library beside a model: put there, named, replaced, taken out."""

import json

import onnx
import pytest
from onnx import TensorProto, helper

from sparsify import add_kernels, native, remove_kernels
from sparsify.disk.files import read_json
from sparsify.errors import DataError

DECODER = {"model": {"decoder": {"filename": "model.onnx", "session_options": {"log_id": "a"}}}}


def write(folder, domain):
    """A model of one node, which only imports our domain when it is packed."""
    folder.mkdir(parents=True)
    info = helper.make_tensor_value_info("X", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["X"], ["Y"])], "g", [info], [other])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(DECODER))
    return folder


@pytest.fixture
def library(tmp_path, monkeypatch):
    path = tmp_path / "built.so"
    path.write_bytes(b"built")
    monkeypatch.setattr(native, "require_library", lambda: path)
    return path


def named(folder):
    options = read_json(folder / "genai_config.json")["model"]["decoder"]["session_options"]
    return options.get("custom_ops_library")


def test_put_beside_each_packed_model_and_taken_out(library, tmp_path):
    packed, other = write(tmp_path / "out" / "a", "sparsify"), write(tmp_path / "out" / "b", "x")
    before = sorted(path.name for path in packed.iterdir())
    (packed / "libsparsify_kernels.dll").write_bytes(b"of another machine")
    assert add_kernels(tmp_path / "out") == [packed / "libsparsify_kernels.so"]
    assert (packed / "libsparsify_kernels.so").read_bytes() == b"built"
    assert not (packed / "libsparsify_kernels.dll").exists()
    assert named(packed) == "libsparsify_kernels.so"
    assert named(other) is None
    library.write_bytes(b"newer")
    (made,) = add_kernels(packed)
    assert made.read_bytes() == b"newer"
    remove_kernels(packed)
    assert read_json(packed / "genai_config.json") == DECODER
    assert sorted(path.name for path in packed.iterdir()) == before


def test_a_folder_without_packed_models(library, tmp_path):
    write(tmp_path / "dense", "x")
    with pytest.raises(
        DataError, match=r"holds no packed model\.onnx; only such a model has a use"
    ):
        add_kernels(tmp_path / "dense")


def test_a_damaged_config(library, tmp_path):
    folder = write(tmp_path / "packed", "sparsify")
    (folder / "genai_config.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match="is damaged: it names no decoder"):
        add_kernels(folder)
    assert not (folder / "libsparsify_kernels.so").exists()
