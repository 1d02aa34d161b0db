"""The weights of a program as the graph computes them, however they are stored: what zeros are counted in."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsify.ir.features.convolution_mask import masked_convolutions
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of
from sparsify.ir.views.linear import effective_weight, products
from sparsify.ir.views.packed import (
    block_weights,
    packed_linears,
    unblocked_weight,
    unpacked_weight,
)


def linear_weights(program: Program) -> Iterator[tuple[str, Tensor]]:
    """The path and the value of every weight of a linear or of experts, each once, one at a time in memory.

    Dense ones are `Q(mask * (W + c B A))` as stored, under the weight's path; those that are packed or in
    blocks are unpacked, `[out, in]`, under the path of their bytes.
    """
    for path, view in {view.weight: view for view in products(program)}.items():
        yield path, effective_weight(program, view)
    for path, stored in {view.weight: view for view in packed_linears(program)}.items():
        yield path, unpacked_weight(program, stored)
    blocks = {view.codes: view for view in block_weights(program) if not view.is_table}
    for path, block in blocks.items():
        yield path, unblocked_weight(program, block)


def other_weights(program: Program) -> Iterator[Tensor]:
    """The value of every parameter that no linear multiplies by, each once, tables in blocks too.

    A convolution's is as its mask leaves it. What a pass has added to a weight (branches, scales) is a part
    of that weight, and none by itself.
    """
    known = {path for path, _ in program.tensors()}
    weights = {view.weight for view in products(program)}
    masks = {view.weight: view.mask for view in masked_convolutions(program)}
    for path, value in program.module.named_parameters():
        if path not in weights and feature_of(path, known) is None:
            mask = masks.get(path)
            yield value if mask is None else value * program.tensor(mask)
    yield from table_weights(program)


def table_weights(program: Program) -> Iterator[Tensor]:
    """The value of every table in blocks `[rows, columns]` that no linear reads, each once."""
    views = block_weights(program)
    heads = {view.codes for view in views if not view.is_table}
    for view in {view.codes: view for view in views if view.codes not in heads}.values():
        yield unblocked_weight(program, view)


def zeros_in(value: Tensor) -> int:
    """How many entries of a tensor are zero."""
    return value.numel() - int(torch.count_nonzero(value))
