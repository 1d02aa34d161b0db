"""Environments by name, and folders written once for all who open them."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsify.ir.program import Program
from tests.environments import environment, pinned, skip_unless_asked

# Plain torch would bring the libraries of accelerators.
PACKAGES = {
    "transformers 5": ("transformers>=5", pinned("torch")),
    "transformers 4": ("transformers<5", pinned("torch")),
    "genai": ("onnxruntime-genai",),
    "optimum": ("optimum-onnx[onnxruntime]", pinned("torch")),
    "sentences": ("sentence-transformers[onnx]", pinned("torch")),
}


@pytest.fixture(scope="session", autouse=True)
def asked(request: pytest.FixtureRequest) -> None:
    """Nothing is downloaded unless these tests are asked for by their mark."""
    skip_unless_asked(request, "ecosystem")


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Python of an environment by its name, built when it is first wanted."""

    @functools.cache
    def made(name: str) -> Path:
        return environment(tmp_path_factory.mktemp("environment"), *PACKAGES[name])

    return made


@pytest.fixture(scope="session")
def greedy() -> Callable[..., Tensor]:
    """The likeliest tokens after ids `[batch, length]`, by a program on the whole sequence each time."""

    def made(program: Program, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
        for _ in range(tokens):
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            logits = program.run({k: v for k, v in given.items() if k in program.sample})[0]
            ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(ids[:, :1])], 1)
        return ids

    return made
