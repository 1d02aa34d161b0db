"""Small random models of every family of the installed transformers, for the sweep of `zoo.py`.

A config's class is asked for its defaults; sizes that it has under the names of `SIZES` are made small, in
its parts too, and it is built anew, so that what follows from sizes follows. Families whose sizes hang
together otherwise have a line in `SPECIAL`.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import getsource
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto as auto

WORDS = 96
# What a family is built as: the first of these that knows it.
TASKS = (
    ("SPEECH_SEQ_2_SEQ", "AutoModelForSpeechSeq2Seq"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "AutoModelForSeq2SeqLM"),
    ("MASKED_LM", "AutoModelForMaskedLM"),
    ("CAUSAL_LM", "AutoModelForCausalLM"),
    ("SEQUENCE_CLASSIFICATION", "AutoModelForSequenceClassification"),
    ("ZERO_SHOT_IMAGE_CLASSIFICATION", "AutoModelForZeroShotImageClassification"),
    ("IMAGE_CLASSIFICATION", "AutoModelForImageClassification"),
    ("CTC", "AutoModelForCTC"),
    ("AUDIO_CLASSIFICATION", "AutoModelForAudioClassification"),
    ("TEXT_ENCODING", "AutoModelForTextEncoding"),
    ("IMAGE_TEXT_TO_TEXT", "AutoModelForImageTextToText"),
    ("", "AutoModel"),  # what has no head of these kinds
)
_NAMES = {
    64: "hidden_size d_model n_embd dim embed_dim model_dim embedding_size "
    "word_embed_proj_dim emb_dim encoder_embed_dim decoder_embed_dim projection_dim "
    "classifier_proj_size pred_hidden_size conv_dim_out attention_hidden_size out_hidden_size "
    "text_hidden_size condition_dim audio_hidden_size upsample_groups output_channels",
    48: "intermediate_size ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim decoder_ffn_dim "
    "dense_intermediate_size intermediate_size_mlp ffn_hidden_size",
    24: "moe_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size",
    40: "shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "shared_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_decoder_layers num_encoder_layers depth pred_num_hidden_layers num_key_value_heads n_kv_heads "
    "num_experts_per_tok top_k num_experts_per_token moe_topk moe_k num_attention_groups "
    "moe_top_k",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_local_experts n_routed_experts num_experts "
    "moe_num_experts mamba_n_heads linear_num_key_heads linear_num_value_heads "
    "num_experts_total index_topk linear_num_heads pred_num_attention_heads frames_per_clip",
    16: "head_dim kv_channels d_kv v_head_dim qk_nope_head_dim kv_lora_rank q_lora_rank "
    "mamba_d_head linear_key_head_dim linear_value_head_dim attention_head_size "
    "qk_head_dim num_mel_bins index_head_dim index_n_heads "
    "linear_head_dim",
    8: "qk_rope_head_dim patch_size state_size mamba_d_state rotary_dim",
    1: "n_group topk_group n_shared_experts num_nextn_predict_layers first_k_dense_replace "
    "mamba_n_groups n_groups num_shared_experts moe_layer_start_index",
    32: "image_size crop_size",
    128: "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions "
    "block_size max_seq_len max_sequence_length seq_length",
    WORDS: "vocab_size encoder_vocab_size decoder_vocab_size vocab_size_per_layer_input",
    5: "num_labels",
}
SIZES = {name: value for value, names in _NAMES.items() for name in names.split()}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40]}
_WINDOWS = {
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "patch_size": 4,
}
_PYRAMID = {
    "hidden_sizes": [32, 48, 64],
    "depths": [1, 1, 1],
    "image_size": 64,
    "patch_size": 16,
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_ALIKE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("blt", {"encoder_hash_byte_group_vocab": 64}),
    ("dots1", {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}),
    ("efficientnet", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}),
    ("esmc", {"num_key_value_heads": 4}),
    ("levit", {**_PYRAMID, "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8]}),
    ("lilt", {"hidden_size": 96}),
    (
        "switch_transformers",
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    ("qwen2_5_omni_thinker qwen3_omni_moe_thinker", {"vision_start_token_id": 2}),
    ("xmod", {"default_language": "en_XX", "languages": ("en_XX",)}),
    ("layoutlmv3", {"coordinate_size": 12, "shape_size": 8}),
    ("luke mluke", {"entity_vocab_size": WORDS}),
    ("mobilevit mobilevitv2", {"image_size": 64}),
    ("nemotron", {"num_key_value_heads": 4}),
    ("perceiver", {"d_latents": 64, "num_latents": 8, "num_self_attends_per_block": 2}),
    ("wav2vec2-bert wav2vec2-conformer", {"vocab_size": WORDS}),
    ("deepseek_v2", {"num_experts_per_tok": 2}),
    ("convnext convnextv2", _STAGES),
    ("resnet regnet", {**_STAGES, "embedding_size": 16}),
    ("swin swinv2 donut-swin", _WINDOWS),
    ("esm", {"vocab_size": WORDS, "pad_token_id": 1, "mask_token_id": 3}),
    ("gemma3n_text", {"num_kv_shared_layers": 0}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    ("lfm2 lfm2_moe lfm3", {"layer_types": ["conv", "full_attention"]}),
    ("qwen3_next qwen3_5_text qwen3_5_moe_text kimi_linear", _HYBRID),
    ("granitemoehybrid", {**_HYBRID, "mamba_n_heads": 8}),
    ("bamba", {"attn_layer_indices": [1], "mamba_n_heads": 8}),
    ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    ("zamba", {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2}),
    ("zamba2", {"layers_block_type": ["linear_attention", "hybrid"]}),
    ("zamba zamba2", {"attention_hidden_size": 128, "attention_head_dim": 32}),
    ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}),
    ("mamba2", {"num_heads": 8, "head_dim": 16}),
)
SPECIAL: dict[str, dict[str, Any]] = {}
for _names, _sizes in _ALIKE:
    for _family in _names.split():
        SPECIAL.setdefault(_family, {}).update(_sizes)


def families() -> Iterator[tuple[str, str]]:
    """Every family that one of `TASKS` knows, and the auto class that builds it."""
    seen: set[str] = set()
    for task, name in TASKS:
        table = f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES"
        for family in getattr(auto, table, ()):
            if family not in seen and family in CONFIG_MAPPING:
                seen.add(family)
                yield family, name


def small_config(family: str) -> PreTrainedConfig:
    """The config of a family with every size that it has made small."""
    return _small(CONFIG_MAPPING[family](), SPECIAL.get(family, {}))


def _small(config: PreTrainedConfig, special: dict[str, Any]) -> PreTrainedConfig:
    changed = {**_changes(config), **special}
    return type(config)(**changed, **_sections(config, changed))


def _changes(config: PreTrainedConfig) -> dict[str, Any]:
    """What to give the class of a config so that it is small."""
    changed: dict[str, Any] = {}
    names = {**getattr(type(config), "attribute_map", {})}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            changed[name] = _small(value, SPECIAL.get(value.model_type, {}))
        elif isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
            changed[name] = min(value, SIZES[name]) if value > 0 else value
        elif name.endswith("token_id") and isinstance(value, int) and value >= WORDS:
            changed[name] = 1
    if vars(config).get("head_dim", 0) is None:
        changed["head_dim"] = SIZES["head_dim"]
    if "qk_rope_head_dim" in changed:
        # Keys of one latent for all heads, of which a part is rotated.
        latent = {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 24}
        changed |= {name: size for name, size in latent.items() if name in changed}
    # Both of two names for one size would be told twice.
    return {name: value for name, value in changed.items() if names.get(name) not in changed}


def _sections(config: PreTrainedConfig, changed: dict[str, Any]) -> dict[str, Any]:
    """The parts of a rotation by time, height and width, which its frequencies must fill."""
    rope = vars(config).get("rope_parameters")
    code = type(config).__module__.replace("configuration_", "modeling_")
    if (
        not isinstance(rope, dict)
        or "rope_type" not in rope
        or "num_attention_heads" not in changed
    ):
        return {}
    if find_spec(code) is None or "mrope_section" not in getsource(import_module(code)):
        return {}
    size = changed.get("head_dim") or changed["hidden_size"] // changed["num_attention_heads"]
    part = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    count = int(size * part) // 2
    return {
        "rope_parameters": {**rope, "mrope_section": [count - 2 * (count // 3), *[count // 3] * 2]}
    }


def small_model(family: str, task: str) -> nn.Module:
    """A random model of a family, in evaluation mode, biases and gains moved away from 0 and 1."""
    torch.manual_seed(0)
    config = small_config(family)
    config.architectures = config.architectures or []
    model = getattr(transformers, task).from_config(config)
    count = sum(value.numel() for value in model.parameters())
    if count > 40_000_000:
        raise ValueError(f"{count:,} parameters are not small")
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point():
                value.add_(0.03 * torch.randn_like(value))
    return model.eval()
