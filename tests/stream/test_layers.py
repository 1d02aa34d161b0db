"""Layers are read off the graph: under names without numbers they are the same layers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import sparsify.stream.prune as module
from sparsify.data.sequences import TextData
from sparsify.ir.run.stages import stages
from sparsify.ir.views.targets import targeted
from sparsify.pretrained import architecture
from sparsify.pretrained import load as pretrained
from sparsify.select.one_shot import OneShot
from sparsify.select.weights import Target
from sparsify.stream.job import Job
from sparsify.stream.prune import prune


class Pair(nn.Module):
    """Two layers that are no list: their names bear no numbers."""

    def __init__(self, layers):
        super().__init__()
        for name, layer in zip(("early", "late"), layers, strict=False):
            self.add_module(name, layer)

    def __getitem__(self, some):
        return list(self.children())[some]


class NamedForCausalLM(transformers.LlamaForCausalLM):
    """A Llama of two layers called early and late."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers = Pair(self.model.layers)


@pytest.fixture
def named(build, tmp_path, monkeypatch):
    """Folders of one model: with its usual names, and with the others."""
    model = build("llama")
    usual, other = tmp_path / "usual", tmp_path / "named"
    model.save_pretrained(usual)
    for library in (transformers, architecture.transformers, pretrained.transformers):
        monkeypatch.setattr(library, "NamedForCausalLM", NamedForCausalLM, raising=False)
    renamed = NamedForCausalLM(model.config)
    renamed.load_state_dict(
        {
            key.replace("layers.0", "layers.early").replace("layers.1", "layers.late"): value
            for key, value in model.state_dict().items()
        }
    )
    renamed.save_pretrained(other)
    return usual, other


def test_stream_finds_resumes_and_writes_layers_without_numbers(named, tmp_path, monkeypatch):
    data = TextData(torch.arange(300).repeat(2), 20)
    how = OneShot("wanda", Target.of(None, "2:4"))
    jobs = {
        place.name: Job(
            str(place), how, tmp_path / f"{place.name}-out", 6, 2, 0, "layer", "float32"
        )
        for place in named
    }
    prune(jobs["usual"], data)
    prune_stage = module._Run._prune_stage

    def break_off(self, stage, seen, started):
        if stage.linears[0].weight == "model.layers.late.mlp.gate_proj.weight":
            raise RuntimeError("pulled the plug")
        return prune_stage(self, stage, seen, started)

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_prune_stage", break_off)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            prune(jobs["named"], data)
    work = jobs["named"].out / ".resume"
    assert json.loads((work / "progress.json").read_text())["stage"] == 4
    prune(jobs["named"], data, resume=True)
    here, there = (
        {
            key.replace("early", "0").replace("late", "1"): value
            for file in sorted(jobs[name].out.glob("*.safetensors"))
            for key, value in load_file(file).items()
        }
        for name in ("usual", "named")
    )
    assert here.keys() == there.keys()
    assert all(torch.equal(value, there[key]) for key, value in here.items())
    # Each layer is one shard, and what lies in none another.
    assert len(list(jobs["named"].out.glob("*.safetensors"))) == 3


def test_layers_of_stages_are_residual_layers(traced):
    program = traced("llama")
    found = stages(program, targeted(program, ("*",), ()))
    layers = list(dict.fromkeys(stage.layer for stage in found))
    assert [layer.name for layer in layers] == ["model.layers.0", "model.layers.1"]
    wanted = {path for path, _ in program.tensors() if path.startswith("model.layers.1.")}
    assert set(layers[1].tensors) == wanted


def test_what_lies_in_no_layer_is_a_stage_of_its_own(traced):
    program = traced("llama")
    found = stages(program, targeted(program, ("*", "lm_head.weight"), ()))
    assert found[-1].layer is None
    assert found[-2].layer is not None
