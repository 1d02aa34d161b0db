"""Environments by name, and folders written once for all who open them."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

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
