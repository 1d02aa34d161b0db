"""Layers with the inputs that pruning papers are about: correlated, with outlier channels."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    weight: Tensor  # [out, in]
    x: Tensor  # [tokens, in]

    @property
    def gram(self) -> Tensor:
        return self.x.T @ self.x

    @property
    def square_sum(self) -> Tensor:
        return self.x.square().sum(0)

    def error(self, weight: Tensor) -> float:
        """||X W^T - X W'^T|| / ||X W^T||, in float64."""
        x, dense = self.x.double(), self.weight.double()
        lost = x @ (dense - weight.double()).T
        return float(lost.norm() / (x @ dense.T).norm())


def draw_layer(
    seed: int, outputs: int = 64, inputs: int = 256, tokens: int = 1024, outliers: int = 4
) -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rank = max(1, inputs // 8)
    x = normal(tokens, rank) @ normal(rank, inputs) / rank**0.5 + 0.3 * normal(tokens, inputs)
    x[:, torch.randperm(inputs, generator=generator)[:outliers]] *= 12
    return Layer(normal(outputs, inputs) * inputs**-0.5, x)


@pytest.fixture(scope="session")
def layer() -> Callable[..., Layer]:
    return draw_layer
