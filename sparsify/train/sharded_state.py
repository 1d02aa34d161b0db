"""Weights, moments and masks of a training whose tensors are cut over ranks: each rank writes its own part.

torch's distributed checkpoint holds them, so that any number of ranks, one too, reads what others wrote.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify.ir.program import Program

_FOLDER = "parts"


class Keeper(Protocol):
    """What keeps tensors beside those of a program, cut over ranks as some of these are."""

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, new ones or its own."""

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in values for what `tensors` gave."""


@dataclass(frozen=True)
class Parts:
    """What may be `cut` over ranks: tensors of a program, of its optimiser and of its moving masks."""

    cut: bool
    program: Program
    optimizer: torch.optim.Optimizer
    masks: Keeper | None = None

    def state(self) -> dict[str, Any]:
        """Weights and masks."""
        weights = {f"weight/{path}": value.detach() for path, value in self.program.tensors()}
        kept = {} if self.masks is None else self.masks.tensors()
        return {**weights, **{f"kept/{name}": value for name, value in kept.items()}}

    def moved(self) -> Iterator[tuple[int, Tensor]]:
        """The tensors that the optimiser moves, by their number among all."""
        groups = self.optimizer.param_groups
        yield from enumerate(each for group in groups for each in group["params"])


def is_in_parts(folder: Path) -> bool:
    """Whether a checkpoint is one of these."""
    return (folder / _FOLDER).is_dir()


def save_parts(parts: Parts, folder: Path) -> None:
    """Write this rank's part of all tensors, and of what the optimiser knows of each; all ranks call."""
    from torch.distributed.checkpoint.state_dict_saver import save  # importing it takes a second

    state = parts.state()
    for number, parameter in parts.moved():
        for name, value in parts.optimizer.state.get(parameter, {}).items():
            state[f"moment/{number}/{name}"] = value
    save(state, checkpoint_id=folder / _FOLDER)


@torch.no_grad()
def load_parts(parts: Parts, folder: Path) -> None:
    """Put what `save_parts` wrote where it came from, in place; all ranks call."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    place = folder / _FOLDER
    known = FileSystemReader(place).read_metadata().state_dict_metadata
    moments = [key for key in known if key.startswith("moment/")]
    parameters = dict(parts.moved())
    state = parts.state()
    for key in moments:
        state[key] = _room(known[key], parameters[int(key.split("/")[1])])
    with warnings.catch_warnings():
        # One process may read, too.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, checkpoint_id=place)
    for key in moments:
        _, number, name = key.split("/")
        parts.optimizer.state[parameters[int(number)]][name] = state[key]
    if parts.masks is not None:
        kept = {key: value for key, value in state.items() if key.startswith("kept/")}
        parts.masks.take({key.removeprefix("kept/"): value for key, value in kept.items()})


def _room(about: Any, parameter: Tensor) -> Any:
    """What a stored moment is read into: cut like its parameter, or a number."""
    if not hasattr(about, "size"):
        return 0
    if about.size == parameter.shape:
        return torch.zeros_like(parameter)
    return torch.zeros(about.size, dtype=about.properties.dtype)
