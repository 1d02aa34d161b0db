"""Small random models of an encoder and a decoder: absolute positions, distances, sounds."""

import functools

import torch
import transformers
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace

_BART = {
    "vocab_size": 60,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": 60,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_WHISPER = {
    **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
    "decoder_layers": 2,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
}
MODELS = {
    "bart": (transformers.BartForConditionalGeneration, transformers.BartConfig, _BART),
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, _T5),
    "whisper": (transformers.WhisperForConditionalGeneration, transformers.WhisperConfig, _WHISPER),
}


@functools.cache
def model(name: str) -> transformers.PreTrainedModel:
    """A model that does not repeat itself: greedy tokens of random weights would be one and the same."""
    cls, config, sizes = MODELS[name]
    torch.manual_seed(0)
    made = cls(config(**sizes)).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.15 * torch.randn_like(value))
    made.generation_config.eos_token_id = None
    made.generation_config.no_repeat_ngram_size = 2
    return made


@functools.cache
def _traced(name: str) -> Program:
    return trace(model(name), copy=True)


def traced(name: str) -> Program:
    """Its program, which may be changed."""
    return _traced(name).clone()


def greedy(logits_of, rows: int, begin: list[int], tokens: int) -> torch.Tensor:
    """The likeliest token each time by logits `[batch, length, vocabulary]`, no pair of them twice."""
    rule = NoRepeatNGramLogitsProcessor(2)
    ids = torch.tensor([begin] * rows)
    for _ in range(tokens):
        with torch.no_grad():
            last = rule(ids, logits_of(ids)[:, -1])
        ids = torch.cat([ids, last.argmax(-1)[:, None]], 1)
    return ids


def theirs(
    name: str, given: dict[str, torch.Tensor], begin: list[int], tokens: int
) -> torch.Tensor:
    """What the model itself goes on with, without a cache."""
    dense, rows = model(name), len(next(iter(given.values())))
    return greedy(
        lambda ids: dense(**given, decoder_input_ids=ids, use_cache=False).logits,
        rows,
        begin,
        tokens,
    )
