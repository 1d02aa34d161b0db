"""Tensors that are whole while one piece of the graph runs, and cut over the ranks otherwise (FSDP2)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsify.ir.program import Program
from sparsify.ir.run.segments import Segment, segments


class Unit(nn.Module):
    """The tensors of one piece; FSDP2 gathers them around a call, and again around its backward pass."""

    def forward(self, run: Callable[..., Any], *values: Any) -> Any:
        """What `run` gives."""
        return run(*values)


def matrix_masks(module: nn.Module) -> dict[str, torch.Tensor]:
    """The masks `[out, in]` or `[experts, out, in]` among the buffers: a byte an entry."""
    buffers = module.named_buffers(remove_duplicate=False)
    return {path: b for path, b in buffers if b.dtype == torch.bool and b.dim() > 1}


def read_once(reads: Sequence[Iterable[int]]) -> list[set[int]]:
    """Of every piece but the last, what is read there once and in no other piece."""
    times = Counter(key for each in reads for key in each)
    return [{key for key in each if times[key] == 1} for each in reads[:-1]]


class LayerUnits(nn.Module):
    """A unit for each piece of the graph, of the parameters and masks that no other piece reads.

    What several pieces read, as a tied table, is in none, nor what the last one reads: losses may look at it
    behind the forward pass.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        held: dict[str, torch.Tensor] = dict(
            program.module.named_parameters(remove_duplicate=False)
        )
        held |= matrix_masks(program.module)
        read = [[p for p in each.tensors if p in held] for each in segments(program.module)]
        alone = read_once([[id(held[path]) for path in paths] for paths in read])
        self._places: dict[str, tuple[Unit, str]] = {}
        self.each = nn.ModuleList()
        for paths, own in zip(read[:-1], alone, strict=True):
            unit = Unit()
            for path in (path for path in paths if id(held[path]) in own):
                name, value = f"p{len(self._places)}", held[path]
                if not isinstance(value, nn.Parameter):  # FSDP2 gathers nothing else
                    value = nn.Parameter(value, requires_grad=False)
                unit.register_parameter(name, value)
                self._places[path] = (unit, name)
            if own:
                self.each.append(unit)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the tensors that are in a unit."""
        return tuple(self._places)

    def tensor(self, path: str) -> torch.Tensor | None:
        """The tensor at a path as it is now, whole or cut; None for one that is in no unit."""
        return self.now(path) if path in self._places else None

    def now(self, path: str) -> torch.Tensor:
        """The same for one that is in a unit."""
        unit, name = self._places[path]
        found: torch.Tensor = getattr(unit, name)
        return found

    def call(self, piece: Segment, run: Callable[..., Any], values: Sequence[Any]) -> Any:
        """What `run` gives for some values, with all tensors of units that the piece reads whole."""
        found = {self._places[path][0]: None for path in piece.tensors if path in self._places}
        for unit in found:
            run = partial(unit, run)
        return run(*values)
