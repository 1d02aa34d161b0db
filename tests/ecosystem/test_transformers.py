"""Folders of huggingface in releases of transformers before 5 and since: same outputs, same token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from exporters.huggingface import Huggingface
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.load import load_tokenizer, source_of
from tests.environments import answer
from tests.ir.axes.families import FAMILIES
from tests.ir.axes.families import traced as family_traced

pytestmark = pytest.mark.ecosystem

PROGRAM = Path(__file__).parent / "programs" / "in_transformers.py"
TEXT = "The function returns a table."
SMALLER = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels"
)
_SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_theta": 50000.0, "rope_type": kind, **more}


LONG = {"original_max_position_embeddings": 16}
LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, **LONG)
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
KINDS = {
    "full_attention": rope("linear", factor=4.0),
    "sliding_attention": {"rope_theta": 777.0, "rope_type": "default"},
}
PARTIAL = rope("default", partial_rotary_factor=0.5)
# What only other words say in releases before 5.
ROTARY: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama3": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(rope_parameters=LLAMA3, **_SIZES)
    ),
    "linear": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(rope_parameters=rope("linear", factor=4.0), **_SIZES)
    ),
    "yarn": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(rope_parameters=rope("yarn", factor=4.0, **LONG), **_SIZES)
    ),
    "longrope": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            rope_parameters=rope("longrope", **FACTORS, **LONG), **LONG, **_SIZES
        )
    ),
    "partial": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(rope_parameters=PARTIAL, **_SIZES)
    ),
    "by-kind": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            rope_parameters=KINDS,
            layer_types=list(KINDS),
            sliding_window=8,
            query_pre_attn_scalar=8,
            head_dim=8,
            **_SIZES,
        )
    ),
}


def rotary(name: str) -> Program:
    torch.manual_seed(0)
    model = ROTARY[name]().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(0, 0.12)
    return trace(model)


def programs() -> dict[str, Program]:
    """Every family that we write, pruned ones, and every kind of rotary positions."""
    made = {name: family_traced(name) for name in FAMILIES if not name.endswith("eager")}
    made |= {name: parse(SMALLER).run(family_traced(name)) for name in ("mistral", "qwen3")}
    made |= {f"rope-{name}": rotary(name) for name in ROTARY}
    made["llama"].tokenizer = load_tokenizer(source_of("embedded"))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    made = []
    for name, program in programs().items():
        folder = write_checked(Huggingface(), program, tmp_path_factory.mktemp("hf") / name)
        inputs = {key: value.numpy() for key, value in program.sample.items()}
        np.savez(folder / "expected.npz", output=program.run()[0].numpy(), **inputs)
        made.append(folder)
    return made


@pytest.mark.parametrize("release", ["transformers 4", "transformers 5"])
def test_same_outputs_and_ids(release, folders, python):
    said = answer(python(release), PROGRAM, *folders)
    assert len(said) == len(folders)
    assert {name: row["unfit"] for name, row in said.items() if row["unfit"]} == {}
    assert {name: row["off"] for name, row in said.items() if not row["off"] <= 1e-5} == {}
    assert said["llama"]["ids"] == dict(load_tokenizer(source_of("embedded"))(TEXT))
