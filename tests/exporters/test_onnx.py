"""The ONNX file computes what the program computes, on any size, under its names."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch

from exporters.onnx import FILE, Onnx
from sparsify.engine.contract import Reader
from sparsify.engine.export import write_checked
from sparsify.errors import ExportError
from sparsify.ir.program import Program
from sparsify.tensors.precision import relative_difference


@dataclass(frozen=True)
class Exported:
    program: Program
    model: onnx.ModelProto
    read: Reader
    folder: Path


@pytest.fixture(scope="module")
def exported(family, programs, tmp_path_factory):
    program = programs(family)
    folder = write_checked(Onnx(), program, tmp_path_factory.mktemp(family))
    return Exported(program, onnx.load(folder / FILE), Onnx().read_back(program, folder), folder)


@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 33), (5, 2)])
def test_outputs_on_other_shapes(exported, batch, length):
    ids = torch.randint(3, 200, (batch, length), generator=torch.Generator().manual_seed(batch))
    inputs = exported.program.complete({"input_ids": ids})
    inputs["attention_mask"][0, -1] = 0
    wanted, found = exported.program.run(inputs), exported.read(inputs)
    assert len(wanted) == len(found)
    for a, b in zip(wanted, found, strict=True):
        assert a.shape[0] == batch
        assert relative_difference(a, b) <= 1e-5


def test_names_stay(exported):
    graph, program = exported.model.graph, exported.program
    assert [value.name for value in graph.input] == list(program.sample)
    assert [value.name for value in graph.output] == list(program.source.outputs)
    assert {path for path, _ in program.tensors()} <= {item.name for item in graph.initializer}
    for value in graph.input:
        named = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        assert named == [program.dynamic[value.name][i] for i in range(len(named))]


def test_metadata(exported):
    said = {item.key: item.value for item in exported.model.metadata_props}
    assert set(said) == {"sparsify.pipeline", "sparsify.config"}
    assert said["sparsify.pipeline"] == "said{so=true}"
    config = json.loads(said["sparsify.config"])
    assert config["model_type"] == exported.program.source.config["model_type"]


def test_nothing_about_the_machine(exported):
    text = (exported.folder / FILE).read_bytes()
    assert b".py" not in text
    assert str(Path.cwd()).encode() not in text


def test_each_weight_once(exported):
    weights = sum(tensor.nbytes for _, tensor in exported.program.tensors())
    assert (exported.folder / FILE).stat().st_size < weights + 60_000


def test_attention_is_one_node(exported):
    kinds = [node.op_type for node in exported.model.graph.node]
    assert kinds.count("Attention") == 2
    assert "Softmax" not in kinds
    if exported.program.source.model_class == "LlamaForCausalLM":
        assert kinds.count("RotaryEmbedding") == 4
        assert kinds.count("RMSNormalization") == 5


def test_pruned_with_heavy_weights_beside_the_graph(pruned, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("exporters.onnx._EXTERNAL_BYTES", 1000)
    program = pruned("llama", "heads")
    program.tokenizer = tokenizer
    folder = write_checked(Onnx(), program, tmp_path)
    assert (folder / "model.onnx.data").stat().st_size > 200_000
    assert (folder / FILE).stat().st_size < 100_000
    shapes = {i.name: list(i.dims) for i in onnx.load(folder / FILE).graph.initializer}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == [64, 32]
    assert (folder / "tokenizer.json").is_file()


def test_a_failure_of_the_writer_is_one_sentence(programs, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("step 3/3") from KeyError("no such op")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError) as caught:
        write_checked(Onnx(), programs("bert_classifier"), tmp_path)
    assert str(caught.value) == (
        "torch.onnx could not write the program at opset 23: 'no such op'; export to safetensors"
    )
    assert list(tmp_path.iterdir()) == []


def test_refusals(programs, tmp_path):
    program = programs("bert_classifier")
    with pytest.raises(ExportError, match=r"^onnx cannot be written at opset 7; choose 18 to 24$"):
        write_checked(Onnx(opset=7), program, tmp_path)
    program.module.to(torch.bfloat16)
    with pytest.raises(ExportError, match="the program holds bfloat16; load the model in float32"):
        write_checked(Onnx(), program, tmp_path)
    assert list(tmp_path.iterdir()) == []
