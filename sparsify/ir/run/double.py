"""A program in double precision: what its own rounding is measured against."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.run.unrounded import Unrounded
from sparsify.tensors.precision import relative_difference

# How many times a program's own rounding another rounding of the same values may be away.
_MARGIN = 16.0


class _Double(Unrounded):
    """Computes in float64 whatever the graph computes in float32, and rounds no inputs."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor of the program."""
        return _widened(super().get_attr(target, args, kwargs))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An input."""
        return _widened(super().placeholder(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An op, its types widened too."""

        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        return super().call_function(
            target, map_aggregate(args, widened), map_aggregate(kwargs, widened)
        )


def in_double(program: Program, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a float32 program on a batch, computed in float64 and without rounding of inputs."""
    with evaluating(program.module), torch.no_grad():
        outputs: tuple[Tensor, ...] = _Double(program.module).run(*program.complete(batch).values())
    return outputs


def is_rounding(
    program: Program, batch: Mapping[str, Tensor], own: Sequence[Tensor], given: Sequence[Tensor]
) -> bool:
    """Whether other outputs differ from a program's own by what float32 rounds off on the way alone.

    They may be sixteen times as far from the outputs in double precision as the program's own are. In deep
    models rounding adds up beyond any fixed bound, and by other numbers for matrices of other sizes; what is
    wrong in a graph stands out from it all the same.
    Where inputs are rounded, both are outputs without that. False for programs of other types.
    """
    if any(output.dtype != torch.float32 for output in own):
        return False
    return all(
        relative_difference(exact, other) <= _MARGIN * relative_difference(exact, mine)
        for exact, mine, other in zip(in_double(program, batch), own, given, strict=True)
    )


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
