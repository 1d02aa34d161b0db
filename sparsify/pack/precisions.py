"""What rounding a weight to int8 or int4 takes in bytes, and what it costs in loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsify.data.sequences import Data
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, composed_weight, out_in
from sparsify.select.gradients import gradient_moments
from sparsify.tensors.packing.blocks import SIZES, block_bytes
from sparsify.tensors.packing.fit import Wanted, fullest_group
from sparsify.tensors.packing.layout import BITS, Layout, packable
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight

_HALF = 2  # bytes of a scale in float16


@dataclass(frozen=True)
class Precision:
    """The values that a weight is rounded to, and the columns that share a scale; as text `int4:32`."""

    values: str
    group: int

    def __str__(self) -> str:
        return f"{self.values}:{self.group}"

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """Of its text; OptionError when it is none."""
        values, _, group = text.partition(":")
        if values not in ("int8", "int4") or not group.isdecimal():
            raise OptionError(f"'{text}' is no rounding; it is written as in int4:32")
        return cls(values, int(group))


def bytes_of(program: Program, view: Linear, precision: Precision, wanted: Wanted) -> int:
    """The bytes of a weight: as `pack-nm` stores it where it has the zeros, else as `pack-dense` does."""
    weight = out_in(view, composed_weight(program, view))
    _, _, count = fullest_group(weight.flatten(0, -2), wanted.m)
    n = max(1, count) if wanted.n is None else wanted.n
    *experts, outputs, inputs = weight.shape
    if count <= n < wanted.m and packable(Pattern(n, wanted.m)):
        layout = Layout(n, wanted.m, inputs, outputs, precision.values, precision.group)
        return math.prod(experts) * layout.nbytes
    if precision.group not in SIZES:
        raise OptionError(
            f"@{view.weight} has no zeros of {wanted}, and dense blocks have 32, 64 or 128 columns, "
            f"not {precision.group}"
        )
    blocks = -(-inputs // precision.group)
    return (
        math.prod(experts)
        * outputs
        * blocks
        * (block_bytes(precision.group, precision.values) + _HALF)
    )


def rounding_costs(
    program: Program,
    views: Mapping[str, Linear],
    precisions: Sequence[Precision],
    data: Data,
    indices: Sequence[int],
) -> dict[Precision, dict[str, float]]:
    """What rounding each weight costs: `sum_ok F_ok (W_ok - Q(W)_ok)^2 / 2`, by precision and path.

    F is the mean over samples of the squared gradient of the task loss. Scales are `absmax`.
    """
    moments = gradient_moments(program, data, indices, sorted(views))
    found: dict[Precision, dict[str, float]] = {precision: {} for precision in precisions}
    for path, view in views.items():
        weight = out_in(view, composed_weight(program, view)).flatten(0, -2)
        squares = out_in(view, moments[path][1]).flatten(0, -2)
        for precision in precisions:
            error = weight - _rounded(weight, precision)
            found[precision][path] = float((squares * error.square()).double().sum() / 2)
    return found


def _rounded(weight: Tensor, precision: Precision) -> Tensor:
    group, bits = precision.group, BITS[precision.values]
    scales = absmax_scales(weight, group, bits)
    return dequantize(round_weight(weight, scales, group, bits), scales, group).to(weight.dtype)
