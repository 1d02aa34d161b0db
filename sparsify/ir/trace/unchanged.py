"""A model that is traced, and then is as it was: buffers, modes, hooks, attributes, random state."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give a model back bitwise as it came, whatever its own code does to it in between.

    That holds for every attribute of every submodule (modes, hooks, counters, caches, an own `forward`),
    the values of buffers, `requires_grad`, and the states of all random generators. Parameters are too
    large to be kept twice: where the code of the model has written into them (scaled them on its first run,
    say), it goes on remembering so, and computes what it did.
    """
    parts = [(part, _attributes(part)) for part in model.modules()]
    written = [(value, _version(value)) for value in model.parameters()]
    buffers = [(value, _version(value), value.detach().clone()) for value in model.buffers()]
    trained = [(value, value.requires_grad) for value in model.parameters()]
    devices = {value.device.index for value in model.parameters() if value.is_cuda}
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            wrote = any(version != _version(value) for value, version in written)
            for part, attributes in parts:
                _restore(part, attributes, remembering=wrote)
            for value, version, kept in buffers:
                if version is None or value._version != version:
                    with torch.no_grad():
                        value.copy_(kept)
            for parameter, wanted in trained:
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)


@contextlib.contextmanager
def unremembering(model: nn.Module) -> Iterator[None]:
    """Let a model forget what its code notes while it runs without numbers: it has written into no tensor."""
    parts = [(part, _attributes(part)) for part in model.modules()]
    try:
        yield
    finally:
        for part, attributes in parts:
            _restore(part, attributes, remembering=False)


def _attributes(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The attributes of a module; of containers what they hold as well."""
    return {
        name: (value, value.copy() if isinstance(value, _CONTAINERS) else None)
        for name, value in vars(part).items()
    }


def _restore(part: nn.Module, attributes: dict[str, tuple[Any, Any]], *, remembering: bool) -> None:
    held = vars(part)
    for name in held.keys() - attributes.keys():
        del held[name]
    for name, (value, content) in attributes.items():
        if remembering and name != "training" and isinstance(value, bool):
            continue
        held[name] = value
        if isinstance(value, list) and content is not None:
            value[:] = content
        elif content is not None:
            value.clear()
            value.update(content)


def _version(value: Tensor) -> int | None:
    """How often a tensor was written to; None where nobody counts."""
    return None if value.is_inference() else value._version
