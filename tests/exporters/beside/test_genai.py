"""What other runtimes are told of a decode graph: the caches it has, the ids, the lengths."""

from dataclasses import replace

import pytest
import transformers

from exporters.beside import genai
from exporters.beside.genai import caches, context_length, refusal, with_caches
from exporters.onnx_decode import OnnxDecode
from sparsify.disk.files import notes, read_json
from sparsify.engine.pipeline import parse
from sparsify.ir.decode.variant import decoder
from tests.ir.axes.families import traced as family_traced

SHORTER = (
    "insert-masks{of=heads,layers} | choose-masks{of=heads,layers sparsity=0.5} | "
    "prune-heads | prune-layers"
)
GENERATION = {"eos_token_id": [2, 5], "top_p": 0.9, "use_cache": True, "do_sample": True}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def variant():
    """A decode variant of one layer with half of its heads."""
    program = decoder(parse(SHORTER).run(family_traced("llama")))
    program.source = replace(program.source, generation=GENERATION)
    return program


def test_what_onnxruntime_genai_is_told(variant, tmp_path):
    assert caches(variant) == [(2, 8, 8)]
    OnnxDecode().write_settings(variant, tmp_path)
    assert read_json(tmp_path / "genai_config.json") == {
        "model": {
            "type": "decoder",
            "bos_token_id": 1,
            "eos_token_id": [2, 5],
            "pad_token_id": 2,
            "context_length": 64,
            "vocab_size": 60,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "hidden_size": 64,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "head_size": 8,
                "num_hidden_layers": 1,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": 64,
            "do_sample": True,
            "top_p": 0.9,
            "past_present_share_buffer": False,
        },
    }
    config = read_json(tmp_path / "config.json")
    told = ("num_hidden_layers", "num_key_value_heads", "head_dim", "hidden_size")
    assert [config[key] for key in told] == [1, 2, 8, 64]
    assert read_json(tmp_path / "generation_config.json") == GENERATION
    assert notes(tmp_path) == []


def test_what_cannot_be_told(variant, monkeypatch, tmp_path):
    config = transformers.LlamaConfig(**SIZES)
    assert refusal([(2, 8, 8), (3, 8, 8)], config) is None
    assert refusal([(2, 8, 6)], config) == "its layer 0 has keys of size 8 and values of size 6"
    assert context_length(config) == 2048
    assert context_length(transformers.BertConfig(max_position_embeddings=7)) == 7
    monkeypatch.setattr(genai, "context_length", lambda config: None)
    assert refusal([(2, 8, 8)], config) == "its config names no greatest length"
    OnnxDecode().write_settings(variant, tmp_path)
    assert not (tmp_path / "genai_config.json").exists()
    assert notes(tmp_path) == [
        "onnxruntime-genai does not run this model, since its config names no greatest length: "
        "there is no genai_config.json"
    ]


@pytest.mark.parametrize(
    ("config", "heads", "size", "told"),
    [
        (transformers.LlamaConfig(num_key_value_heads=4, **SIZES), 4, 8, [64, 8, 4]),
        # Heads gone, a size of its own: query heads give way.
        (transformers.LlamaConfig(num_key_value_heads=4, **SIZES), 2, 8, [64, 8, 2]),
        (transformers.Qwen3Config(num_key_value_heads=4, head_dim=16, **SIZES), 4, 16, [64, 4, 4]),
        (transformers.LlamaConfig(num_key_value_heads=4, **SIZES), 3, 24, [48, 2, 3]),
        # Nothing names KV heads: the width gives way.
        (transformers.GPT2Config(n_embd=64, n_head=4), 4, 16, [64, 4, None]),
        (transformers.GPT2Config(n_embd=64, n_head=4), 3, 16, [48, 3, None]),
        # What is no entry is not written.
        (transformers.FalconConfig(hidden_size=64, num_attention_heads=4), 1, 16, [16, 1, None]),
    ],
)
def test_what_optimum_is_told(config, heads, size, told):
    assert with_caches(config, [(heads, size, size)] * 2) is None
    entries = [config.hidden_size, config.num_attention_heads]
    grouped = getattr(config, "num_key_value_heads", None)
    assert [*entries, grouped] == told
    # As Optimum computes it.
    assert (grouped or entries[1], entries[0] // entries[1]) == (heads, size)
    assert config.num_hidden_layers == 2


def test_what_optimum_cannot_be_told():
    config = transformers.Qwen3Config(layer_types=["full_attention"] * 2, **SIZES)
    differing = "its layers have caches of different shapes"
    assert with_caches(config, [(2, 8, 8), (3, 8, 8)]) == differing
    assert with_caches(config, [(2, 8, 6)]) == differing
    assert config.num_hidden_layers == 1
    assert config.layer_types is None
