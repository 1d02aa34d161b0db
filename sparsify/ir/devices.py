"""Move a program to a device: its tensors, its sample, and the devices written into its nodes."""

from typing import Any

import torch
from torch import fx

from sparsify.ir.program import Program
from sparsify.ir.types import propagate


def move(program: Program, device: str) -> None:
    """Put everything on a device, in place; does nothing when it already is there."""
    target = torch.device(device)
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
