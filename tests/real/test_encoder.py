"""A real pretrained encoder through the recipe `encoder`: smaller, and near the dense one again."""

import pytest
import torch
from rich.console import Console

from benchmarks import encoder
from sparsify import export, load
from sparsify.errors import DataError

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def made():
    try:
        folder = encoder.packaged()
    except DataError as error:
        pytest.skip(str(error))
    return encoder.compress(folder, 120, Console(quiet=True))


def test_half_of_the_heads_and_channels_are_gone(made):
    shapes = {path: tuple(value.shape) for path, value in made["program"].tensors()}
    assert shapes["encoder.layer.0.attention.self.query.weight"] == (192, 384)
    assert shapes["encoder.layer.5.intermediate.dense.weight"] == (768, 384)


def test_distillation_brings_the_embeddings_back(made):
    before, after = made["before"].mean, made["after"].mean
    assert after > before + 0.1
    assert after > 0.78


def test_it_survives_onnx_and_disk(made, tmp_path):
    paths = export(made["program"], tmp_path, ["onnx", "safetensors"])
    again = load(paths["safetensors"])
    assert all(map(torch.equal, again.run(), made["program"].run()))
