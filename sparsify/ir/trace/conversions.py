"""Conversions of modules that change nothing, inside a model's forward: an export cannot follow them."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn


@contextlib.contextmanager
def idle_conversions() -> Iterator[None]:
    """Let `module.to(...)` give the module back where its tensors are of that type and place already.

    Routers of experts are converted so in every forward. A conversion that does something stays, and is for
    the export to refuse.
    """
    original = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        # As torch reads them: a device, a type, ... or a tensor that has both.
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        for value in (*module.parameters(), *module.buffers()):
            typed = dtype is None or not value.is_floating_point() or value.dtype == dtype
            if not typed or (device is not None and value.device != device):
                return original(module, *args, **kwargs)
        return module

    with mock.patch.object(nn.Module, "to", to):
        yield
