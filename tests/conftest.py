"""Small models with weights that are nowhere trivial, and their programs, traced once a session."""

import functools
import os
from collections.abc import Callable

# Read when the hub's client is imported: a name that is no folder fails at once, on every machine.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read when torch is imported: in models of two layers its cache of fake ops costs a third of a trace.
os.environ["TORCH_FAKE_TENSOR_DISPATCH_CACHE"] = "0"

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx._internal.exporter import _registration as torch_translations

from sparsify.data.sequences import TextData
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace

torch.set_num_threads(1)
_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


def _opt() -> transformers.OPTConfig:
    return transformers.OPTConfig(
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=300,
        max_position_embeddings=128,
        word_embed_proj_dim=64,
    )


def _gpt2() -> transformers.GPT2Config:
    sizes = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return transformers.GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes)


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_DECODER)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(head_dim=16, **_DECODER)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(_gpt2()),
    "opt": lambda: transformers.OPTForCausalLM(_opt()),
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(num_labels=3, **_ENCODER)
    ),
    "bert-base": lambda: transformers.BertModel(transformers.BertConfig(**_ENCODER)),
}
# Models that tests ask for by name, left out of what runs over every family.
_ALONE: dict[str, Callable[[], nn.Module]] = {
    "gemma": lambda: transformers.GemmaForCausalLM(
        transformers.GemmaConfig(head_dim=16, **_DECODER)
    ),
    "routed": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            num_local_experts=6,
            num_experts_per_tok=2,
            **{**_DECODER, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
        )
    ),
}


class Mlp(nn.Module):
    """`x [batch, length, 8]` -> `[batch, length, 5]`, with a residual and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(functional.gelu(self.up(self.norm(x)))))


class Block(nn.Module):
    """Token ids `[batch, length]` -> logits `[batch, length, 11]`: four heads, 12 channels, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.query = nn.Linear(8, 16)
        self.key = nn.Linear(8, 16)
        self.value = nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        batch, length = input_ids.shape
        q, k, v = (
            f(x).view(batch, length, 4, 4).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, 16))
        return self.head(x + self.down(functional.gelu(self.up(x))))


def _roughen(model: nn.Module) -> nn.Module:
    """Weights of a size that makes every part of the model felt; norm weights off 1, biases off 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(max(0.12, value.shape[1] ** -0.5) * noise)
            elif bool((value == 1).all()):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(0.1 * noise)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def _translations_once() -> None:
    """Have `torch.onnx` read the source of its translations once, not again for every export."""
    apis = torch_translations.onnxscript_apis
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)


@pytest.fixture(params=tuple(_MODELS))
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn, unless a test parametrises the name itself."""
    return str(request.param)


@pytest.fixture(scope="session")
def build() -> Callable[[str], nn.Module]:
    """A fresh model of a family; the same weights every time."""

    def make(family: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _roughen({**_MODELS, **_ALONE}[family]())

    return make


@pytest.fixture(scope="session")
def tiny_module() -> Callable[[str], nn.Module]:
    """A fresh hand-made module, `mlp` or `block`."""
    return lambda name: _roughen({"mlp": Mlp, "block": Block}[name]())


@pytest.fixture(scope="session")
def traced(
    build: Callable[[str], nn.Module], tiny_module: Callable[[str], nn.Module]
) -> Callable[[str], Program]:
    """A program of its own for a family, `routed`, `mlp` or `block`."""
    known: dict[str, Program] = {}

    def make(name: str) -> Program:
        if name not in known:
            ours = name in _MODELS or name in _ALONE
            known[name] = trace(build(name)) if ours else _tiny(name, tiny_module(name))
        return known[name].clone()

    return make


def _tiny(name: str, module: nn.Module) -> Program:
    if name == "mlp":
        x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
        return trace(module, {"x": x}, {"x": {0: "batch", 1: "length"}})
    ids = torch.arange(10).reshape(2, 5)
    return trace(module, {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


@pytest.fixture(scope="session")
def text() -> TextData:
    """Sequences of 12 token ids below 300 that a model can learn: each token follows from the last."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(3, 40, (60,), generator=generator)
    rows = [(start + 7 * torch.arange(12)) % 290 + 3 for start in starts]
    return TextData(torch.cat(rows), 12)


@pytest.fixture(scope="session")
def tokens() -> TextData:
    """Sequences of 12 token ids below 11, for `block`."""
    return TextData(torch.randint(0, 11, (480,), generator=torch.Generator().manual_seed(3)), 12)
