"""One rule per op: how the axes of its outputs follow from those of its inputs.

A rule is keyed by the overload, since overloads of one name may mean different things (`max.dim`
and `max.other`). An op without a rule pins everything it touches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes
from sparsify.ir.axes.axis import Axis

aten = torch.ops.aten

# Axes of the one output, or one list for each output.
Rule = Callable[[Analysis, fx.Node, dict[str, Any]], Axes | list[Axes]]

_PAIRS = """
add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor mul.Tensor mul.Scalar div.Tensor
div.Scalar div.Tensor_mode floor_divide.default floor_divide.Scalar remainder.Scalar
remainder.Tensor
pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum.default minimum.default max.other min.other
le.Tensor le.Scalar lt.Tensor lt.Scalar ge.Tensor ge.Scalar gt.Tensor gt.Scalar eq.Tensor eq.Scalar
ne.Tensor ne.Scalar __and__.Tensor __and__.Scalar __or__.Tensor __xor__.Tensor bitwise_and.Tensor
bitwise_or.Tensor bitwise_xor.Tensor logical_and.default logical_or.default logical_xor.default
where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor
lerp.Scalar lerp.Tensor addcmul.default
"""
_SINGLES = """
rsqrt.default sqrt.default square.default reciprocal.default neg.default abs.default sign.default
exp.default log.default log1p.default erf.default cos.default sin.default tanh.default
sigmoid.default
relu.default relu6.default silu.default gelu.default hardtanh.default hardswish.default
hardsigmoid.default leaky_relu.default elu.default selu.default softplus.default mish.default
clamp.default clamp_min.default clamp_max.default round.default floor.default ceil.default
trunc.default logical_not.default bitwise_not.default isnan.default isinf.default isfinite.default
dropout.default feature_dropout.default nan_to_num.default
to.dtype to.device to.dtype_layout to.other type_as.default _to_copy.default contiguous.default
clone.default alias.default detach.default lift_fresh_copy.default
zeros_like.default ones_like.default full_like.default empty_like.default
"""


def overloads(names: str) -> list[torch._ops.OpOverload]:
    """The ATen overloads of a list of `name.overload`, those this torch lacks left out."""
    found = []
    for name in names.split():
        packet, overload = name.split(".")
        op = getattr(getattr(aten, packet, None), overload, None)
        if op is not None:
            found.append(op)
    return found


def broadcast(analysis: Analysis, node: fx.Node, operands: list[Axes]) -> Axes:
    """Axes of operands aligned at their last dimensions; where all have length 1, a new one."""
    rank = max((len(axes) for axes in operands), default=0)
    result: Axes = []
    for back in range(rank, 0, -1):
        here = [axes[-back] for axes in operands if len(axes) >= back]
        wide = [axis for axis in here if axis.root().size != 1]
        for axis in wide[1:]:
            analysis.tie(node, wide[0], axis)
        result.append(wide[0] if wide else Axis(1))
    return result


def pairwise(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """An op on aligned elements of all its operands."""
    operands = [analysis.axes[x] for x in args.values() if isinstance(x, fx.Node) and _sized(x)]
    return broadcast(analysis, node, operands)


def single(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """An op on each element of its first operand; others lend it no more than a type."""
    source = next(value for value in args.values() if isinstance(value, fx.Node))
    return list(analysis.axes[source])


def counted(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A tensor whose entries depend on their place."""
    return analysis.like(node.meta["val"], f"{node.name} counts along it")


def _sized(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.Tensor)


_COUNTED = "arange.default arange.start arange.start_step linspace.default scalar_tensor.default"

ELEMENTWISE: dict[object, Rule] = {
    **dict.fromkeys(overloads(_PAIRS), pairwise),
    **dict.fromkeys(overloads(_SINGLES), single),
    **dict.fromkeys(overloads(_COUNTED), counted),
}
