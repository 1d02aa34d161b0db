"""Weights and moments of a training whose parameters are cut over ranks: each rank writes its own part.

torch's distributed checkpoint holds them, so that any number of ranks, one too, reads what others wrote.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.program import Program

_FOLDER = "parts"


def is_in_parts(folder: Path) -> bool:
    """Whether a checkpoint is one of these."""
    return (folder / _FOLDER).is_dir()


def save_parts(program: Program, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write this rank's part of all tensors, and of what the optimiser knows of each; all ranks call."""
    from torch.distributed.checkpoint.state_dict_saver import save  # importing it takes a second

    state: dict[str, Any] = _weights(program)
    for number, parameter in _numbered(optimizer):
        for name, value in optimizer.state.get(parameter, {}).items():
            state[f"moment/{number}/{name}"] = value
    save(state, checkpoint_id=folder / _FOLDER)


@torch.no_grad()
def load_parts(program: Program, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put what `save_parts` wrote into a program and its optimiser, in place; all ranks call."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    place = folder / _FOLDER
    known = FileSystemReader(place).read_metadata().state_dict_metadata
    moments = [key for key in known if key.startswith("moment/")]
    parameters = dict(_numbered(optimizer))
    state: dict[str, Any] = _weights(program)
    for key in moments:
        state[key] = _room(known[key], parameters[int(key.split("/")[1])])
    with warnings.catch_warnings():
        # One process may read, too.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, checkpoint_id=place)
    for key in moments:
        _, number, name = key.split("/")
        optimizer.state[parameters[int(number)]][name] = state[key]


def _weights(program: Program) -> dict[str, Any]:
    return {f"weight/{path}": value.detach() for path, value in program.tensors()}


def _numbered(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, Tensor]]:
    """The tensors that an optimiser moves, by their number among all."""
    yield from enumerate(each for group in optimizer.param_groups for each in group["params"])


def _room(about: Any, parameter: Tensor) -> Any:
    """What a stored moment is read into: cut like its parameter, or a number."""
    if not hasattr(about, "size"):
        return 0
    if about.size == parameter.shape:
        return torch.zeros_like(parameter)
    return torch.zeros(about.size, dtype=about.properties.dtype)
