"""Masks that hold values from 0 to 1 while they are learnt: the graph as it runs then.

where(mask, y, x)  ->  where(mask != 0, y, x)     layers, with every term of a sum inside them times the mask

Masks of heads, channels and the residual width multiply already, and norms average over what is not zero.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from sparsify.ir.axes.residual import blocks, terms_of
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import block_mask_path, block_masks
from sparsify.ir.graph import Writer
from sparsify.ir.program import Program

aten = torch.ops.aten
Put = Callable[[Mapping[str, Tensor]], None]


@contextlib.contextmanager
def soft_masks(program: Program, paths: list[str]) -> Iterator[Put]:
    """The masks at some paths, of channels, heads, layers or hidden, take any values inside the block.

    Yields a function that puts values there, of the shape of each mask, in the type of the weights; gradients
    go through them. Graph and masks of before stand again afterwards, node for node.
    """
    before = program.module.graph
    masks = {path: program.tensor(path) for path in paths}
    program.module.graph = copy.deepcopy(before)
    try:
        _soften_layers(program, masks)

        dtype = next(v.dtype for v in program.module.parameters() if v.is_floating_point())

        def put(values: Mapping[str, Tensor]) -> None:
            for path, value in values.items():
                _set(program, path, value.to(dtype))

        put({path: mask.float() for path, mask in masks.items()})
        yield put
    finally:
        program.module.graph = before
        for path, mask in masks.items():
            # The program may have moved to another device meanwhile.
            _set(program, path, mask.to(program.tensor(path).device))


def _soften_layers(program: Program, masks: Mapping[str, Tensor]) -> None:
    analysis = analyse(program)
    terms = {
        block_mask_path(block): terms_of(analysis, block) for block in blocks(analysis, "layers")
    }
    for mask in block_masks(program, "layers"):
        if mask.path not in masks:
            continue
        writer = Writer(program, before=mask.node)
        live = writer.call(aten.ne.Scalar, writer.read(mask.path), 0)
        mask.node.update_arg(0, live)
        for term, user in terms[mask.path]:
            writer = Writer(program, before=user)
            scaled = writer.call(aten.mul.Tensor, term, writer.read(mask.path))
            user.replace_input_with(term, scaled)
    program.module.recompile()


def _set(program: Program, path: str, value: Tensor) -> None:
    """Another tensor in place of a buffer, with all that gradients go back through."""
    owner, _, name = path.rpartition(".")
    setattr(program.module.get_submodule(owner), name, value)
