"""How large what a graph computes may be: no number, list or tensor without end comes out of few nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import DataError, SparsifyError
from sparsify.ir.program import Program

aten = torch.ops.aten

_NUMBER = 1 << 63  # far above any size
_TERMS = 256  # operations in the formula of a size
_PIECES = 1 << 12
_DIMENSIONS = 32
# Entries of a tensor: so many in any program, and so many for each entry of its weights and inputs.
_LEAST, _TIMES = 1 << 24, 64
# Ops that cut a tensor into a list; an argument says how many pieces, or how long each is.
_COUNTED = {aten.chunk.default: 2, aten.tensor_split.sections: 2}
_CUTTING = {aten.split.Tensor, aten.unbind.int, *_COUNTED}


def within_bounds(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function gives on fake arguments; SparsifyError when a size in it has no bound."""
    if target in _CUTTING:
        _refuse_pieces(target, args, kwargs)
    value: Any = target(*args, **kwargs)
    if isinstance(value, Tensor):
        if value.dim() > _DIMENSIONS:
            raise SparsifyError(f"{target} gives a tensor of {value.dim()} dimensions")
        for size in value.shape:
            _refuse_number(size)
    else:
        _refuse_number(value)
    return value


def refuse_huge(program: Program) -> None:
    """Refuse a program that computes a tensor far larger than all of its weights and inputs; DataError."""
    known = [value for _, value in program.tensors()] + list(program.sample.values())
    most = _LEAST + _TIMES * sum(value.numel() for value in known)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tensor) and _entries(item) > most:
                raise DataError(
                    f"node {node.name} makes a tensor of {_entries(item)} entries, "
                    f"out of {most // _TIMES} in all weights and inputs"
                )


def _entries(value: Tensor) -> int:
    """Entries at the sizes that symbols stand for."""
    entries = 1
    for size in value.shape:
        entries *= _hint(size)
    return entries


def _hint(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.has_hint() else 1
    return int(size)


def _refuse_number(value: Any) -> None:
    if isinstance(value, torch.SymInt | torch.SymFloat):
        if value.node.expr.is_Atom:
            return
        terms = sum(1 for _, _ in zip(_walk(value.node.expr), range(_TERMS), strict=False))
        if terms >= _TERMS:
            raise SparsifyError("a size is a formula without end")
        value = value.node.hint if value.node.has_hint() else 0
    if isinstance(value, int | float) and not abs(value) <= _NUMBER:
        raise SparsifyError("a size is a number without end")


def _walk(expression: Any) -> Any:
    """Every part of a formula."""
    stack = [expression]
    while stack:
        part = stack.pop()
        yield part
        stack.extend(part.args)


def _refuse_pieces(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    names = [argument.name for argument in target._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    x, dim = given.get(names[0]), given.get("dim", 0)
    count = given.get(names[1])
    if not isinstance(x, Tensor) or x.dim() == 0 or not isinstance(dim, int):
        return  # the op itself refuses these
    pieces = _hint(x.shape[dim % x.dim()])
    if target in _COUNTED:
        pieces = count if isinstance(count, int) else _PIECES
    elif target is aten.split.Tensor:
        pieces = pieces // max(1, _hint(count)) if isinstance(count, int | torch.SymInt) else 0
    if pieces > _PIECES:
        raise SparsifyError(f"{target} cuts a tensor into {pieces} pieces")
