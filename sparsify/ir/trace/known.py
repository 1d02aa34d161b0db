"""Inputs whose numbers decide sizes: known while the model is exported, and taken at no others later.

A grid of patches is read with `tolist()`, lengths become the bounds of a loop; no graph can follow other
numbers. What code computes from known tensors alone is computed at once, and enters the graph as a constant.
"""

from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only


class Known(Tensor):
    """A tensor of known numbers: ops on such alone give such, any other op reads a constant."""

    def __format__(self, spec: str) -> str:
        """As any tensor of one number is written: a module's name may hold it."""
        return format(self.item() if self.dim() == 0 else self.tolist(), spec)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """An op on tensors of which some are known."""
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if all(isinstance(value, Known) for value in tensors):
            return computed(func, args, kwargs)
        if func in (torch.repeat_interleave, Tensor.repeat_interleave):
            return _repeated(*args, **kwargs)
        args, kwargs = tree_map_only(Known, _constant, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


_MADE = (torch.arange, torch.tensor)
_NUMBERS = (int, float, torch.dtype, NoneType, Known)


class Knowing(TorchFunctionMode):
    """While it lasts, ranges and tensors that code makes of numbers alone are known as well."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """An op of the model's code."""
        given = {name: value for name, value in (kwargs or {}).items() if name != "device"}
        leaves = tree_flatten((args, given))[0]
        if func not in _MADE or any(not isinstance(leaf, _NUMBERS) for leaf in leaves):
            return func(*args, **kwargs or {})
        # A range counts up to a number, where other ops take a tensor of one.
        return computed(func, *tree_map_only(Known, Known.tolist, (args, given)))


def known(value: Tensor) -> Tensor:
    """The same tensor, its numbers known to all that is computed from it."""
    return value if isinstance(value, Known) else value.as_subclass(Known)


def computed(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What an op gives outside of the export that is under way, known."""
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(Tensor, known, func(*args, **kwargs))


def _constant(value: Known) -> Tensor:
    """A constant of the graph that is being made."""
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        numbers = value.tolist()
    return torch.tensor(numbers, dtype=value.dtype).reshape(value.shape)


def _repeated(x: Tensor, repeats: Tensor, dim: int | None = None, **sizes: Any) -> Tensor:
    """`repeat_interleave` as a choice of rows, whose count is known."""
    x, dim = (x.flatten(), 0) if dim is None else (x, dim)
    each = repeats.expand(x.shape[dim])
    rows = computed(torch.arange, (len(each),), {})
    return torch.index_select(x, dim, torch.repeat_interleave(rows, each))
