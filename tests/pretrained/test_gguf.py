"""Models in one GGUF file: the weights that were written, a config without their packing, refusals."""

import pickle

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import export, load, load_model, save, trace
from sparsify.errors import DataError
from sparsify.pretrained.load import load_tokenizer
from sparsify.select.one_shot import OneShot
from sparsify.select.weights import Target
from sparsify.stream.job import Job

gguf = pytest.importorskip("gguf")

WORDS = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(97, 123)), "Ġ", "th", "the", "in", "an"]
MERGES = ["t h", "th e", "i n", "a n"]
CONFIG = LlamaConfig(
    vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=2**-10,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def named(path):
    """The name that llama.cpp gives a tensor of the model."""
    if path == "model.embed_tokens.weight":
        return "token_embd.weight"
    if path == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = path.split(".", 3)
    return f"blk.{layer}.{PARTS[rest.removesuffix('.weight')]}.weight"


def turned(path, value):
    """Rows of queries and keys in the order of llama.cpp, which turns pairs that lie side by side."""
    heads = {"q_proj": 4, "k_proj": 2}.get(path.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)


def write(path, model, kind=None, architecture="llama"):
    """The model as llama.cpp would write it; matrices as `kind` if one is given."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(2**-10)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([2, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in model.named_parameters():
        array = turned(name, value.detach().numpy()).astype(np.float32)
        if kind is not None and array.ndim == 2:
            writer.add_tensor(named(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(named(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def test_the_weights_are_those_of_the_file(model, tmp_path):
    found, tokenizer = load_model(str(write(tmp_path / "tiny.gguf", model)))
    wanted = dict(model.named_parameters())
    assert dict(found.named_parameters()).keys() == wanted.keys()
    assert all(torch.equal(value, wanted[path]) for path, value in found.named_parameters())
    ids = torch.arange(3, 23).reshape(2, 10)
    assert torch.equal(found(ids).logits, model(ids).logits)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat in")["input_ids"])[-1] == "in"


def test_rounded_weights_are_what_their_codes_say(model, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    found, _ = load_model(str(write(tmp_path / "tiny.gguf", model, kind)), "bfloat16")
    path = "model.layers.0.mlp.up_proj.weight"
    wanted = model.get_parameter(path).detach()
    codes = gguf.quantize(wanted.numpy(), kind)
    near = torch.from_numpy(gguf.dequantize(codes, kind))
    assert torch.equal(found.get_parameter(path), near.bfloat16())
    assert 0 < (near - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_nothing_says_that_it_was_packed(model, tmp_path, capfd):
    file = write(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    found, tokenizer = load_model(str(file))
    assert capfd.readouterr().err == ""
    said = found.config.to_dict()
    assert not any("quant" in key for key in said)
    assert said["architectures"] == ["LlamaForCausalLM"]
    assert found.config._name_or_path == str(file)
    found.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    again, words = load_model(str(tmp_path / "plain"))
    wanted = dict(found.named_parameters())
    assert all(torch.equal(value, wanted[path]) for path, value in again.named_parameters())
    assert words("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    pickle.dumps(found)


def test_it_is_traced_saved_and_exported(model, tmp_path):
    found, tokenizer = load_model(str(write(tmp_path / "tiny.gguf", model)))
    program = trace(found, tokenizer=tokenizer)
    save(program, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(program.run(), again.run(), strict=True))
    assert set(export(program, tmp_path, ["onnx-decode", "huggingface"])) == {
        "onnx-decode",
        "huggingface",
    }
    assert load_tokenizer(str(tmp_path / "huggingface")) is not None


def test_streaming_wants_a_folder(model, tmp_path):
    file = write(tmp_path / "tiny.gguf", model)
    with pytest.raises(DataError) as caught:
        Job(str(file), OneShot("magnitude", Target.of(0.5, None)), tmp_path / "out")
    assert str(caught.value) == (
        f"'{file}' is a file, and streaming reads a folder of safetensors; load it with "
        "sparsify.load_model and save model and tokenizer into one"
    )


def test_refusals(model, tmp_path, monkeypatch):
    whole = write(tmp_path / "tiny.gguf", model)
    text, short = tmp_path / "text.gguf", tmp_path / "short.gguf"
    text.write_text("not a model")
    short.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(DataError) as caught:
        load_model(str(text))
    assert str(caught.value) == f"'{text}' is a file; a model is a folder, a hub id or a GGUF file"
    with pytest.raises(DataError, match=f"no model could be loaded from '{short}': "):
        load_model(str(short))
    other = write(tmp_path / "other.gguf", model, architecture="unheard")
    with pytest.raises(
        DataError, match=r"other\.gguf': GGUF model with architecture unheard is not"
    ):
        load_model(str(other))
    monkeypatch.setattr("sparsify.pretrained.gguf.find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        load_model(str(whole))
    assert str(caught.value) == (
        f"'{whole}' is a GGUF file, which the package gguf reads; pip install 'sparsify-fx[gguf]'"
    )
