"""Small random models of the families whose heads and channels must be free."""

import functools
from collections.abc import Callable

import torch
import transformers
from torch import nn

from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace

WORDS = 60
_SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SMALL, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
_ONE = {"num_hidden_layers": 1}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA = {**_GROUPED, **_IDS, "query_pre_attn_scalar": 8, "sliding_window": 8}
_ROUTED = {
    **_GROUPED,
    **_IDS,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def _vit() -> transformers.ViTConfig:
    sizes = {key: value for key, value in _SMALL.items() if key not in ("vocab_size",)}
    return transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, **sizes)


def _t5() -> transformers.T5Config:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return transformers.T5Config(
        vocab_size=WORDS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes
    )


def _gpt2() -> transformers.GPT2Config:
    sizes = {"n_embd": 64, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return transformers.GPT2Config(vocab_size=WORDS, bos_token_id=1, eos_token_id=2, **sizes)


def _opt() -> transformers.OPTConfig:
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 48, "num_hidden_layers": 2}
    return transformers.OPTConfig(
        vocab_size=WORDS, num_attention_heads=4, max_position_embeddings=64, **sizes
    )


def _distilbert() -> transformers.DistilBertConfig:
    sizes = {"dim": 64, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    return transformers.DistilBertConfig(vocab_size=WORDS, max_position_embeddings=64, **sizes)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED)),
    "llama-eager": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(attn_implementation="eager", **{**_GROUPED, **_ONE})
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GROUPED)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_GROUPED)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(sliding_window=8, **_GROUPED)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**_GROUPED, **_IDS)),
    "vit": lambda: transformers.ViTForImageClassification(_vit()),
    "t5": lambda: transformers.T5ForConditionalGeneration(_t5()),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(num_local_experts=6, num_experts_per_tok=2, **_GROUPED, **_IDS)
    ),
    "qwen2-moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(shared_expert_intermediate_size=40, **_ROUTED)
    ),
    "qwen3-moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(norm_topk_prob=True, **_ROUTED)
    ),
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**_SMALL, **_IDS)
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_GEMMA)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_GEMMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(_gpt2()),
    "opt": lambda: transformers.OPTForCausalLM(_opt()),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**_SMALL)),
    "bert-eager": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(attn_implementation="eager", **_SMALL)
    ),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**_SMALL)
    ),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(_distilbert()),
}


def traced(family: str) -> Program:
    """A program of its own for a family; each is traced once."""
    return _traced(family).clone()


@functools.cache
def _traced(family: str) -> Program:
    """The program of a model whose weights are large enough for every part to be felt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]()
        with torch.no_grad():
            for value in model.parameters():
                if value.dim() > 1:
                    value.normal_(0, 0.12)
                else:
                    value.add_(0.2 * torch.randn_like(value))
    return trace(model.eval())
