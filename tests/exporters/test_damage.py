"""A flipped byte in what we wrote is found when it is opened, whatever the format; NaN is not written."""

import json
import os
import shutil

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from exporters.huggingface import Huggingface
from exporters.onnx import Onnx
from exporters.safetensors import Safetensors
from sparsify.cli import app
from sparsify.commands.artifacts import artifacts
from sparsify.engine.export import export, write_checked
from sparsify.errors import DataError, ExportError
from sparsify.ir.storage.folder import load, save
from sparsify.pretrained.load import load_model
from sparsify.runtime.session import onnxruntime_session

ADVICE = "copy it anew, or give --no-verify (verify=False) if it was changed on purpose"


@pytest.fixture(scope="module")
def exported(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for exporter in (Safetensors(), Onnx(), Huggingface()):
        write_checked(exporter, programs("llama"), folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "e")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def sentence(call, *args, **options):
    with pytest.raises(DataError) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize("at", [-3, -4000, -40_000])
def test_a_flipped_byte_of_a_hugging_face_folder(at, folder):
    path = folder / "huggingface" / "model.safetensors"
    flip(path, at)
    assert sentence(load_model, str(path.parent)) == (
        f"'{path}' is damaged: it is not what was written; {ADVICE}"
    )
    load_model(str(path.parent), verify=False)


@pytest.mark.parametrize("at", [-3, -4000, -40_000])
def test_a_flipped_byte_of_an_onnx_file(at, folder):
    path = folder / "onnx" / "model.onnx"
    flip(path, at)
    text = f"'{path}' is damaged: it is not what was written; {ADVICE}"
    assert sentence(onnxruntime_session, path) == text
    assert sentence(artifacts, str(path.parent)) == text


def test_the_command_line_takes_what_was_changed_on_purpose(folder):
    path = folder / "safetensors" / "tensors.safetensors"
    flip(path, -3)
    refused = CliRunner().invoke(app, ["show", str(folder), "--cost"])
    assert isinstance(refused.exception, DataError)
    assert str(refused.exception).startswith(f"'{path}' is damaged: ")
    assert CliRunner().invoke(app, ["show", str(folder), "--cost", "--no-verify"]).exit_code == 0


def test_a_lost_file_of_weights(folder):
    about = folder / "onnx" / "sparsify.json"
    said = json.loads(about.read_text())
    assert list(said["hashes"]) == ["model.onnx"]
    said["hashes"]["model.onnx.data"] = "0" * 64
    about.write_text(json.dumps(said))
    assert sentence(onnxruntime_session, folder / "onnx" / "model.onnx") == (
        f"'{folder / 'onnx'}' lacks model.onnx.data, which was written with it; {ADVICE}"
    )
    said["hashes"] = ["x"]
    about.write_text(json.dumps(said))
    assert sentence(onnxruntime_session, folder / "onnx" / "model.onnx") == (
        f"'{about}' is damaged: its hashes are no mapping"
    )


@pytest.mark.parametrize("at", [-1, -3, -4000, -40_000])
def test_a_flipped_byte_of_a_tensor(at, folder):
    path = folder / "safetensors" / "tensors.safetensors"
    flip(path, at)
    text = sentence(load, path.parent)
    assert text.startswith(f"'{path}' is damaged: ")
    assert text.endswith(f" is not what was written; {ADVICE}")
    load(path.parent, verify=False)


def test_a_flipped_byte_of_the_document_and_of_the_sample(folder):
    place = folder / "safetensors"
    path = place / "program.json"
    text = path.read_text()
    assert "1e-06" in text
    path.write_text(text.replace("1e-06", "1e-05", 1))
    assert sentence(load, place) == (
        f"'{path}' is damaged: program.json is not what was written; {ADVICE}"
    )
    path.write_text(text)
    flip(place / "sample.safetensors", -16)
    assert sentence(load, place) == (
        f"'{place / 'sample.safetensors'}' is damaged: "
        f"sample.safetensors: {list(load(place, verify=False).sample)[-1]} is not what was written; "
        f"{ADVICE}"
    )


def test_folders_without_hashes_load(folder):
    path = folder / "safetensors" / "program.json"
    about = json.loads(path.read_text())
    del about["hashes"]
    path.write_text(json.dumps(about))
    load(path.parent)
    (folder / "huggingface" / "sparsify.json").unlink()
    load_model(str(folder / "huggingface"))


def test_the_same_program_is_the_same_bytes(folder, tmp_path):
    program = load(folder / "safetensors")
    made = [save(program, tmp_path / str(number)) for number in range(8)]
    made += [write_checked(Huggingface(), program, tmp_path / f"e{number}") for number in range(4)]
    for paths in (made[:8], made[8:]):
        files = [
            {file.name: file.read_bytes() for file in path.iterdir() if file.suffix != ".md"}
            for path in paths
        ]
        assert all(other == files[0] for other in files)


@pytest.mark.parametrize("form", ["safetensors", "onnx", "huggingface", "onnx-decode"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_not_exported(value, form, programs, tmp_path):
    program = programs("llama").clone()
    path = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        program.tensor(path)[3, 5] = value
    with pytest.raises(ExportError) as caught:
        export(program, tmp_path / "out", [form])
    assert str(caught.value) == (
        f"the tensor '{path}' holds 1 values that are NaN or infinite; "
        "nothing was written: go back to the program before it broke"
    )
    assert not (tmp_path / "out").exists()
    save(program, tmp_path / "kept")  # what a run goes on from is kept as it is
    assert load(tmp_path / "kept").tensor(path)[3, 5].isnan() or value == float("inf")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_weights_of_an_onnx_file_outside_its_folder(place, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert onnx.load(folder / "model.onnx", load_external_data=False).graph.name == "g"
    text = sentence(onnxruntime_session, folder / "model.onnx")
    assert text.startswith(f"ONNX Runtime cannot open '{folder / 'model.onnx'}': ")
    assert "xternal data" in text


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_that_asks_for_kernels_of_others(key, folder):
    path = folder / "huggingface" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "someone/kernels"}))
    assert sentence(load_model, str(path.parent)).endswith(
        "takes its attention from the repository 'someone/kernels', which is code of others; "
        "take attn_implementation out of its config"
    )


def test_a_pipe_in_a_hugging_face_folder(folder):
    path = folder / "huggingface" / "generation_config.json"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert sentence(load_model, str(path.parent)) == f"'{path}' is no plain file"
