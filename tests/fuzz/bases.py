"""The programs that are mutated: small ones that hold every kind of thing a document can hold."""

import torch
import transformers

from sparsify.engine.pipeline import parse
from sparsify.ir.decode.variant import decoder
from sparsify.ir.storage.folder import save
from sparsify.ir.trace.trace import trace
from tests.conftest import Block, Mlp

_SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 32,
}  # fmt: skip
_PIPELINES = {
    "mlp": "insert-masks | insert-lora{rank=2} | insert-probes{gram=true}",
    "block": "insert-masks{of=heads,channels}",
    "packed": "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm",
}


def _mlp():
    return trace(Mlp(), {"x": torch.ones(2, 3, 8)}, {"x": {0: "batch", 1: "length"}})


def _block():
    ids = torch.arange(10).reshape(2, 5)
    return trace(Block(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


def _llama():
    return trace(transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES)).eval())


def _mixtral():
    config = transformers.MixtralConfig(num_local_experts=2, num_experts_per_tok=1, **_SIZES)
    return trace(transformers.MixtralForCausalLM(config).eval())


def small(folder):
    """Two programs of hand-made modules, quickly traced."""
    made = {"mlp": _mlp(), "block": _block()}
    return [_saved(folder / name, program, _PIPELINES[name]) for name, program in made.items()]


def every(folder):
    """Those, packed weights, a decoder with its caches, omission, and experts."""
    llama = _llama()
    return [
        *small(folder),
        _saved(folder / "packed", _block(), _PIPELINES["packed"]),
        _saved(folder / "rounded", _block(), "insert-masks | insert-quantizers"),
        save(decoder(llama.clone()), folder / "decoder"),
        _saved(folder / "omission", llama, "insert-omission{of=channels multiple=2}"),
        _saved(folder / "experts", _mixtral(), "insert-masks{of=experts}"),
    ]


def _saved(folder, program, text):
    return save(parse(text).run(program), folder)
