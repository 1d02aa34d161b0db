"""Parameters that are whole while one piece of the graph runs, and cut over the ranks otherwise (FSDP2)."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsify.ir.program import Program
from sparsify.ir.run.segments import Segment, segments


class Unit(nn.Module):
    """The parameters of one piece; FSDP2 gathers them around a call, and again around its backward pass."""

    def forward(self, run: Callable[..., Any], *values: Any) -> Any:
        """What `run` gives."""
        return run(*values)


class LayerUnits(nn.Module):
    """A unit for each piece of the graph, of the parameters that no other piece reads.

    What several pieces read, as a tied table, is in none, nor what the last one reads: losses may look at it
    behind the forward pass.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        learned = dict(program.module.named_parameters(remove_duplicate=False))
        *pieces, last = segments(program.module)
        times = Counter(id(learned[p]) for piece in pieces for p in piece.tensors if p in learned)
        times.update(id(learned[path]) for path in last.tensors if path in learned)
        held = {id(learned[path]) for path in last.tensors if path in learned}
        self._places: dict[str, tuple[Unit, str]] = {}
        self.each = nn.ModuleList()
        for piece in pieces:
            unit = Unit()
            for path in (path for path in piece.tensors if path in learned):
                if times[id(learned[path])] == 1 and id(learned[path]) not in held:
                    name = f"p{len(self._places)}"
                    unit.register_parameter(name, learned[path])
                    self._places[path] = (unit, name)
            if any(True for _ in unit.parameters()):
                self.each.append(unit)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the parameters that are in a unit."""
        return tuple(self._places)

    def tensor(self, path: str) -> torch.Tensor | None:
        """The parameter at a path as it is now, whole or cut; None for one that is in no unit."""
        if path not in self._places:
            return None
        unit, name = self._places[path]
        found: torch.Tensor = getattr(unit, name)
        return found

    def call(self, piece: Segment, run: Callable[..., Any], values: Sequence[Any]) -> Any:
        """What `run` gives for some values, with all parameters that the piece reads whole."""
        found = {self._places[path][0]: None for path in piece.tensors if path in self._places}
        for unit in found:
            run = partial(unit, run)
        return run(*values)
