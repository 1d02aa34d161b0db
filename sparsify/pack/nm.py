"""Which weights of a program can be packed, how, and their bytes; refusals name the tensor and the place."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import tables
from sparsify.ir.views.linear import (
    Linear,
    apart,
    composed_weight,
    effective_weight,
    out_in,
    products,
    together,
)
from sparsify.select.weights import require_scales
from sparsify.tensors.packing.fit import Wanted, fullest_group
from sparsify.tensors.packing.layout import BITS, packable
from sparsify.tensors.packing.packed import Layout, dense, pack
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import round_weight


@dataclass(frozen=True)
class Request:
    """How weights are wanted packed.

    `values` may be `rounded`, for those of each weight's quantizer, and `group` None for that of the
    quantizers; `named` are the paths that must not stay dense for having no zeros.
    """

    wanted: Wanted
    values: str
    group: int | None
    named: Set[str]


def layouts(program: Program, views: Mapping[str, Linear], request: Request) -> dict[str, Layout]:
    """The layout of each weight that is to be packed, by path; what is left out stays dense.

    Raises OptionError when a weight does not have the zeros or is used transposed as well, when its
    quantizers do not fit the values or would be left over, and when nothing can be packed.
    """
    found = {
        path: layout
        for path, view in views.items()
        if (layout := _layout(program, view, request)) is not None
    }
    for view in products(program):
        if view.weight in found and view.transposed != views[view.weight].transposed:
            raise OptionError(
                f"@{view.weight} is used both as it stands and transposed, so no rows can be packed; "
                "leave it out with ignore"
            )
        if view.quantizer is not None and view.weight not in found:
            raise OptionError(
                f"@{view.weight} has a quantizer but would stay dense; leave it out of the targets of "
                "insert-quantizers, or take it into those of pack-nm"
            )
    left = [table.weight for table in tables(program) if table.quantizer is not None]
    if left:
        raise OptionError(
            f"the table @{left[0]} has a quantizer but no zeros to leave out; round tables after pack-nm, "
            "for pack-dense"
        )
    if not found:
        raise OptionError(
            f"no target has the zeros of {request.wanted}; "
            f"run {_choosing(request.wanted)} | fold-masks before"
        )
    return found


def packed_bytes(program: Program, view: Linear, layout: Layout) -> Tensor:
    """The bytes of a linear's weight, uint8, unpacked again and compared with it bit for bit.

    `[bytes]`, of experts `[experts, bytes]`.
    """
    weight = out_in(view, effective_weight(program, view))
    try:
        if view.quantizer is None:
            each = [pack(one.float(), layout) for one in apart(view, weight)]
        else:
            chosen = program.tensor(view.quantizer.scales)
            exact = out_in(view, composed_weight(program, view))
            each = [
                pack(round_weight(one, scales, layout.group, BITS[layout.values]), layout, scales)
                for one, scales in zip(apart(view, exact), apart(view, chosen), strict=True)
            ]
    except SparsifyError as error:
        raise type(error)(f"@{view.weight}: {error}") from error
    for value, one in zip(each, apart(view, weight), strict=True):
        if not torch.equal(dense(value, layout).to(one.dtype), one):
            raise SparsifyError(
                f"@{view.weight} does not come back from its packed bytes as it was"
            )
    return together(view, each)


def _layout(program: Program, view: Linear, request: Request) -> Layout | None:
    """How a weight is packed; None when it stays dense."""
    wanted, weight = request.wanted, out_in(view, effective_weight(program, view))
    row, first, count = fullest_group(weight.flatten(0, -2), wanted.m)
    n = max(1, count) if wanted.n is None else wanted.n
    if n == wanted.m or not packable(Pattern(n, wanted.m)):
        return None
    if count > n:
        if view.weight not in request.named and bool((weight != 0).all()):
            return None
        last = min(first + wanted.m, weight.shape[-1]) - 1
        expert, row = divmod(row, weight.shape[-2])
        where = f"expert {expert}, row {row}" if view.stacked else f"row {row}"
        raise OptionError(
            f"@{view.weight} does not have the zeros of {wanted}: {where}, columns {first} to {last} "
            f"hold {count} nonzeros; run {_choosing(wanted)} | fold-masks before, or leave it out with "
            "ignore"
        )
    values, group = request.values, 0
    if request.values != "float32":
        values, group = _rounding(program, view, request)
    return Layout(n, wanted.m, weight.shape[-1], weight.shape[-2], values, group)


def _rounding(program: Program, view: Linear, request: Request) -> tuple[str, int]:
    """The values and the columns that share a scale, after holding the quantizers against what is wanted."""
    quantizer, entering = view.quantizer, view.input_quantizer
    if quantizer is None or entering is None:
        what = "weight" if quantizer is None else "input"
        raise OptionError(
            f"the {what} of @{view.weight} has no quantizer, which values={request.values} needs; "
            "widen insert-quantizers, or leave the weight out with ignore"
        )
    if request.values not in (quantizer.values, "rounded"):
        raise OptionError(
            f"@{view.weight} is rounded to {quantizer.values}, not {request.values}; "
            f"pack it with values={quantizer.values}, or each weight as it is with values=rounded"
        )
    if request.group not in (None, quantizer.group):
        raise OptionError(
            f"@{view.weight} has a scale for {quantizer.group} columns, not {request.group}; "
            "leave out group"
        )
    require_scales(program, view, out_in(view, composed_weight(program, view)), quantizer)
    return quantizer.values, quantizer.group


def _choosing(wanted: Wanted) -> str:
    return f"choose-masks{{pattern={wanted}}}" if wanted.n is not None else "choose-masks"


def shrunk(before: int, after: int) -> str:
    """Bytes before and after packing, in words."""
    return f"{_size(before)} -> {_size(after)}"


def _size(count: int) -> str:
    for unit, name in ((10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
