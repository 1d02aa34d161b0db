"""Files beside the weights: old and new words for the same thing, and nothing of this machine."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from exporters.beside.transformers_files import spelt_for_all, write_tokenizer
from exporters.onnx import Onnx
from sparsify.disk.files import read_json
from sparsify.errors import DataError
from sparsify.ir.storage.folder import load, save
from sparsify.pretrained.companions import check_files, tool_files
from sparsify.pretrained.load import load_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 3.0],
}
PHI = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "older"),
    [
        (transformers.LlamaConfig(), {"rope_theta": 1e4}),
        (
            transformers.LlamaConfig(rope_parameters=LLAMA3, max_position_embeddings=512),
            {
                "rope_theta": 5e5,
                "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
            },
        ),
        (
            transformers.Gemma3TextConfig(rope_parameters=BY_KIND),
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        (
            transformers.Phi3Config(rope_parameters=LONG, **PHI),
            {
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.5],
                    "long_factor": [2.0, 3.0],
                },
            },
        ),
        (
            transformers.GPTNeoXConfig(rope_parameters={"rope_theta": 5.0, "rope_type": "default"}),
            {"rotary_emb_base": 5.0, "rotary_pct": 0.25, "partial_rotary_factor": 0.25},
        ),
        (transformers.Qwen3MoeConfig(num_experts=6), {"num_experts": 6, "num_local_experts": 6}),
        (transformers.GPT2Config(), {}),
    ],
    ids=["plain", "scaled", "by kind of layer", "factors", "partial", "experts", "none"],
)
def test_positions_in_old_words_and_new(config, older):
    said = json.loads(json.dumps(spelt_for_all(config)))
    assert {key: said[key] for key in older} == older
    if not older:
        assert not [key for key in said if key.startswith("rope")]
        return
    again = type(config).from_dict(said).rope_parameters
    assert {key: again[key] for key in config.rope_parameters} == config.rope_parameters


def test_old_words_that_would_mean_something_else_are_left_out():
    """Kinds of layers with rotations of their own are younger than the words for one rotation."""
    config = transformers.Gemma4TextConfig(num_hidden_layers=2)
    assert config.rope_parameters["full_attention"]["rope_type"] == "proportional"
    said = json.loads(json.dumps(spelt_for_all(config)))
    assert not {"rope_theta", "rope_scaling", "partial_rotary_factor"} & set(said)
    assert type(config).from_dict(said).rope_parameters == config.rope_parameters


def test_a_tokenizer_for_all_releases(tokenizer, tmp_path):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<x>"]})
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    write_tokenizer(tokenizer, tmp_path)
    said = read_json(tmp_path / "tokenizer_config.json")
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert said["model_input_names"] == ["input_ids", "attention_mask"]
    assert said["additional_special_tokens"] == ["<x>"]
    assert not {"extra_special_tokens", "is_local", "local_files_only"} & set(said)
    again = load_tokenizer(str(tmp_path))
    assert dict(again("one <x> two")) == dict(tokenizer("one <x> two"))
    assert set(again("one")) == {"input_ids", "attention_mask"}
    assert "<x>" in again.all_special_tokens


@pytest.fixture
def modules(tmp_path):
    """A folder of sentence-transformers without its model."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 64}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    paths = ("", "1_Pooling", "2_Normalize")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    return tmp_path


def files(folder):
    return tool_files(SimpleNamespace(name_or_path=str(folder)))


def test_modules_around_a_model_come_along(modules, programs, tmp_path):
    found = files(modules)
    assert set(found) == {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    program = programs("bert")
    program.source = replace(program.source, files=found)
    program = load(save(program, tmp_path / "saved"))
    folder = tmp_path / "onnx"
    folder.mkdir()
    Onnx().write_settings(program, folder)
    assert {path: (folder / path).read_text() for path in found} == found
    assert read_json(folder / "config.json")["architectures"] == ["BertModel"]
    assert read_json(folder / "sparsify.json") == {
        "format": "onnx",
        "pipeline": "said{so=true}",
        "model_class": "BertModel",
        "packed": False,
        "notes": [],
    }


def test_modules_that_cannot_come_along(modules, tmp_path):
    torch.save({}, modules / "1_Pooling" / "pytorch_model.bin")
    assert files(modules) == {}
    (modules / "modules.json").write_text('[{"path": "../other"}]')
    assert files(modules) == {}
    (modules / "modules.json").write_text('{"path": "1_Pooling"}')
    assert files(modules) == {}
    assert files(tmp_path / "none") == files("") == {}


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "C:\\a", "..\\a"])
def test_no_file_outside_the_folder_is_ever_written(path):
    with pytest.raises(DataError, match="which is no file of another tool"):
        check_files({"modules.json": "[]", path: "text"})


def test_the_defaults_for_generation_are_the_models_own(programs, tmp_path):
    program = programs("llama")
    said = {"eos_token_id": [2, 5], "temperature": 0.7, "do_sample": True}
    program.source = replace(program.source, generation=said)
    Onnx().write_settings(program, tmp_path)
    assert read_json(tmp_path / "generation_config.json") == said
    program.source = replace(program.source, generation={})
    Onnx().write_settings(program, tmp_path)
    assert read_json(tmp_path / "generation_config.json")["eos_token_id"] == 2
