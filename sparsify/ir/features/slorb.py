"""The branch of SLoRB beside a linear, `y + linear(linear(x, X), S)`: its insertion and reading."""

from collections.abc import Sequence

import torch

from sparsify.ir.features.beside import (
    Beside,
    add_beside,
    branches_beside,
    carry_beside,
    drop_beside,
)
from sparsify.ir.features.feature import Feature
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import slorb
from sparsify.ir.views.linear import Linear, out_in
from sparsify.tensors.lowrank import block_indicator


def add_slorb(program: Program, uses: Sequence[Linear], k: int) -> None:
    """Add a branch over sums of `k` inputs to every use of one weight.

    `X [in / k, in]` is the block indicator, `S [out, in / k]` zero.
    """
    weight = out_in(uses[0], program.tensor(uses[0].weight))
    outputs, inputs = weight.shape
    x_path, s_path = slorb(uses[0].weight)
    sums, zeros = block_indicator(inputs, k), torch.zeros(outputs, inputs // k)
    add_beside(program, uses, {x_path: sums.to(weight), s_path: zeros.to(weight)})


def slorbs(program: Program) -> list[Beside]:
    """Every masked linear with a branch beside it, once a weight; A is the indicator X, B is S."""
    return [one for one in branches_beside(program, slorb) if one.linear.mask is not None]


FEATURES = (
    Feature(
        "slorb",
        slorb(""),
        slorbs,
        drop_beside,
        lambda made, program: carry_beside(made, program, slorb),
    ),
)
