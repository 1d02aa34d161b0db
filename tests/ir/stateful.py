"""Small models that carry states: short convolutions, selective scans, the gated delta rule, fading means."""

import functools

import torch
from transformers import (
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from sparsify.ir.trace.trace import trace

_COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
_ATTENTION = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def _lfm2():
    layers = ["conv", "full_attention", "conv"]
    config = Lfm2Config(
        **{**_COMMON, **_ATTENTION, "num_hidden_layers": 3},
        layer_types=layers,
        block_auto_adjust_ff_dim=False,
    )
    return Lfm2ForCausalLM(config)


def _mamba():
    return MambaForCausalLM(MambaConfig(**_COMMON, state_size=4, intermediate_size=64))


def _mamba2():
    config = Mamba2Config(
        **_COMMON, state_size=4, num_heads=4, head_dim=16, n_groups=2, chunk_size=8
    )
    return Mamba2ForCausalLM(config)


def _jamba():
    config = JambaConfig(
        **_COMMON,
        **_ATTENTION,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
    )
    return JambaForCausalLM(config)


def _qwen3_next():
    config = Qwen3NextConfig(
        **_COMMON,
        **_ATTENTION,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return Qwen3NextForCausalLM(config)


def _rwkv():
    # One state of each kind for all layers, and weights that are scaled every second one.
    config = RwkvConfig(**{**_COMMON, "num_hidden_layers": 3}, rescale_every=2, context_length=64)
    return RwkvForCausalLM(config)


MODELS = {
    "lfm2": _lfm2,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "qwen3_next": _qwen3_next,
    "rwkv": _rwkv,
}


@functools.cache
def model(name):
    """A model with random weights that are large enough for its states to matter."""
    torch.manual_seed(0)
    made = MODELS[name]().eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, value in made.named_parameters():
            if path.endswith((".weight", "conv.weight")) and value.dim() > 1:
                value.normal_(std=0.25, generator=draw)
    return made


@functools.cache
def _program(name):
    return trace(model(name), copy=True)


def program(name):
    """Its program, to be changed."""
    return _program(name).clone()
