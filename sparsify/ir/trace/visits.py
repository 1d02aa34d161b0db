"""Loops over the places where a list holds, as over the experts that any token has chosen: over all places.

    for e in hit.nonzero(): ...     hit [places]  ->  for e in [[0], [1], ...]: ...

Which places hold is known when the program runs, how many there are when it is made. What a body does for a
place that does not hold must be nothing, as where it adds up the tokens of an expert that has none; that it
is, the comparison with the model finds.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.ir.trace.known import computed

_NONZERO = (torch.nonzero, Tensor.nonzero)
_MOST = 1024  # places, each of which is a copy of the body


class EveryPlace(TorchFunctionMode):
    """While it lasts, such loops go over all places; `where` of one argument is `nonzero`, by columns."""

    def __init__(self) -> None:
        super().__init__()
        self._lists = WeakTensorKeyDictionary()  # where a list holds -> how long it is

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A call of the model's code."""
        if func is torch.where and len(args) == 1 and not kwargs:
            return tuple(args[0].nonzero().unbind(1))
        by_rows = func is Tensor.unbind and args[1:] in ((), (0,)) and not kwargs  # as `for` does
        if by_rows and args[0] in self._lists:
            places = range(self._lists[args[0]])
            return [computed(torch.tensor, ([place],), {}) for place in places]
        found = func(*args, **kwargs or {})
        if func in _NONZERO and args and isinstance(found, Tensor) and args[0].dim() == 1:
            (count,) = args[0].shape
            if isinstance(count, int) and count <= _MOST:
                self._lists[found] = count
        return found
