"""Move a program to a device: its tensors, its sample, and the devices written into its nodes."""

from typing import Any

import torch
from torch import fx

from sparsify.errors import OptionError, reason_of
from sparsify.ir.program import Program
from sparsify.ir.types import propagate


def device_of(name: str | int) -> torch.device:
    """A device by name, as in `cuda:0`, or by number; OptionError for one that this machine has not."""
    try:
        found = torch.device(name)
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name} cannot be used here: {reason_of(error)}") from error
    return found


def move(program: Program, device: str) -> None:
    """Put everything on a device, in place; does nothing when it already is there.

    Raises OptionError for a device that this machine has not.
    """
    target = device_of(device)
    if all(value.device == target for _, value in program.tensors()):
        return
    program.module.to(target)
    program.sample = {key: value.to(target) for key, value in program.sample.items()}

    def swap(value: Any) -> Any:
        return target if isinstance(value, torch.device) else value

    for node in program.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, swap)
        node.kwargs = fx.node.map_aggregate(node.kwargs, swap)
    program.module.recompile()
    propagate(program)
