"""A program whose products do not round their inputs: what is left of it has no steps.

    R(x) W^T  ->  x W^T        weights stay rounded

Rounding turns a difference in the last digit of one float into a whole step, layer after layer, so two right
ways of computing a rounded program may be as far apart as the rounding itself. Without the rounding of
inputs they differ by what float32 rounds off, and what is wrong stands out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.mode import evaluating
from sparsify.ir.ops.registry import op_of
from sparsify.ir.program import Program
from sparsify.ir.views.packed import packed_at


class Unrounded(fx.Interpreter):
    """Computes products that round their inputs by the `unrounded` of their ops."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An op, or what it is without rounding."""
        op = op_of(target)
        if op is not None and op.unrounded is not None:
            return op.unrounded(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def rounds_inputs(program: Program) -> bool:
    """Whether a product of the program may round its input; packed float32 weights leave it as it is."""
    return any(_may_round(node) for node in program.graph.nodes if node.op == "call_function")


def _may_round(node: fx.Node) -> bool:
    op, packed = op_of(node.target), packed_at(node)
    exact = packed is not None and not packed.layout.group
    return op is not None and op.unrounded is not None and not exact


def unrounded_outputs(program: Program, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs on a batch without the rounding of inputs; those of `run` where nothing rounds."""
    if not rounds_inputs(program):
        return program.run(batch)
    with evaluating(program.module), torch.no_grad():
        outputs: tuple[Tensor, ...] = Unrounded(program.module).run(
            *program.complete(batch).values()
        )
    return outputs
