"""Move a program to another device or floating-point type: its tensors, its sample, what its nodes say."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.errors import OptionError, SparsifyError, reason_of
from sparsify.ir.floats import retyped
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import PACKED
from sparsify.ir.types import propagate

Change = Callable[[Tensor], Tensor]


def device_of(name: str | int, *, numbers: bool = True) -> torch.device:
    """A device by name, as in `cuda:0`, or by number; OptionError for one that this machine has not.

    `numbers=False` takes `meta` too, which holds none.
    """
    try:
        found = torch.device(name)
        if numbers and found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name} cannot be used here: {reason_of(error)}") from error
    return found


def move(program: Program, device: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Put everything on a device, floating-point values into a type, in place.

    Does nothing when it already is so. Raises OptionError for a device that this machine has not,
    SparsifyError for a type the program cannot take.
    """
    place = None if device is None else device_of(device)

    def change(value: Tensor) -> Tensor:
        return value.to(place, dtype if value.is_floating_point() else None)

    with following(program, change):
        program.module._apply(change)  # type: ignore[no-untyped-call]


def copied(program: Program, dtype: torch.dtype) -> Program:
    """A program that computes in another floating-point type, over tensors of its own; this one stays.

    Raises SparsifyError for a type the program cannot take.
    """
    made = program.shared()
    for path, value in list(made.tensors()):
        parameter = isinstance(value, torch.nn.Parameter)
        made.put(path, value, trainable=value.requires_grad if parameter else None)
    move(made, dtype=dtype)
    return made


@contextlib.contextmanager
def following(program: Program, change: Change) -> Iterator[None]:
    """The block turns every tensor of the program into `change(tensor)`; nodes, sample and types follow.

    What the nodes become is worked out first: raises SparsifyError, with nothing changed, for a
    floating-point type the program cannot take.
    """
    tensors = dict(program.tensors())
    kinds = {(value.dtype, value.device) for value in tensors.values()}
    made = {kind: change(torch.empty(0, dtype=kind[0], device=kind[1])) for kind in kinds}
    dtypes = {old: new.dtype for (old, _), new in made.items()}
    devices = {old: new.device for (_, old), new in made.items()}
    if all(old == new for each in (dtypes, devices) for old, new in each.items()):
        yield
        return
    graph = program.graph
    if any(old != new for old, new in dtypes.items()):
        if PACKED in program.features:
            raise SparsifyError(
                "packed weights keep the type they are packed in; only a device fits"
            )
        graph = retyped(program, dtypes)
    finite = {path for path, value in program.module.named_buffers() if _is_finite(value)}
    yield
    for path, value in program.module.named_buffers():
        if path in finite and not _is_finite(value):
            # The least value of the type before, which masks hold, is no number of this one.
            value.clamp_(torch.finfo(value.dtype).min, torch.finfo(value.dtype).max)
    program.sample = {key: change(value) for key, value in program.sample.items()}
    _swap_devices(graph, devices)
    program.module.graph = graph
    program.module.recompile()
    propagate(program)


def _is_finite(value: Tensor) -> bool:
    return value.is_meta or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _swap_devices(graph: fx.Graph, devices: dict[torch.device, torch.device]) -> None:
    def swap(value: Any) -> Any:
        return devices.get(value, value) if isinstance(value, torch.device) else value

    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, swap)
        node.kwargs = fx.node.map_aggregate(node.kwargs, swap)


def device_of_rank(name: str) -> str:
    """The device of this process among those of one run: of several GPUs its own.

    Raises OptionError where there are fewer GPUs than processes here, or one GPU is named for several.
    """
    kind, _, number = name.partition(":")
    if ranks.count() == 1 or kind == "cpu":
        return name
    here = int(os.environ.get("LOCAL_RANK", "0"))
    if number:
        raise OptionError(f"{name} is one GPU for {ranks.count()} processes; name {kind} alone")
    device_of(f"{kind}:{here}")
    if kind == "cuda":
        torch.cuda.set_device(here)
    return f"{kind}:{here}"
