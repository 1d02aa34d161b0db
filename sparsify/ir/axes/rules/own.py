"""Rules of our own ops."""

from typing import Any

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, opname
from sparsify.ir.axes.rules.compute import norm, reduce
from sparsify.ir.axes.rules.elementwise import Rule
from sparsify.ir.ops.registry import (
    block_embedding,
    block_linear,
    masked_layer_norm,
    masked_mean,
    masked_rms_norm,
    nm_linear,
    quantize_activations,
    quantize_weight,
)
from sparsify.ir.ops.registry import probe as probe_op


def masked_norm(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A norm or mean over the kept features of its last axis."""
    x, mask, dims, *rest = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(mask, fx.Node)
    analysis.tie(node, analysis.axes[x][-1], analysis.axes[mask][0])
    if node.target is masked_mean:
        return reduce(analysis, node, {"self": x, "dim": dims, "keepdim": (*rest, False)[0]})
    named = dict(zip(("weight", "bias"), (v for v in rest if isinstance(v, fx.Node)), strict=False))
    return norm(analysis, node, {"input": x, "normalized_shape": dims, **named})


def probe(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """The identity on `x`; statistics `[features]`, `[features, features]` have its last axis."""
    x, *statistics = node.all_input_nodes
    axes = analysis.axes[x]
    for statistic in statistics:
        for axis in analysis.axes[statistic]:
            if axis.root().size == axes[-1].root().size:
                analysis.tie(node, axes[-1], axis)
            else:
                axis.pin(f"probe at {node.name} keeps another kind of statistic in it")
    return list(axes)


def packed_linear(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[..., out] = x[..., in] W^T + b[out]`, `W` packed: its bytes are cut by nobody."""
    reason = f"packed into the bytes of {opname(node)} at {node.name}"
    x = analysis.axes[args["x"]]
    bias = [] if args["bias"] is None else analysis.axes[args["bias"]]
    scales = analysis.axes[args["scales"]] if "scales" in args else []
    for axis in (x[-1], *analysis.axes[args["packed"]], *scales, *bias):
        axis.pin(reason)
    return [*x[:-1], analysis.fresh(int(node.meta["val"].shape[-1]), reason)]


def packed_table(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Rows of a packed table by number."""
    reason = f"packed into the bytes of {opname(node)} at {node.name}"
    for axis in (*analysis.axes[args["packed"]], *analysis.axes[args["scales"]]):
        axis.pin(reason)
    width = analysis.fresh(args["columns"], reason)
    analysis.widths.append(width)
    return [*analysis.axes[args["ids"]], width]


def quantized_weight(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A weight `[out, in]` rounded with scales `[out, groups]`: groups of its inputs stay together."""
    axes = analysis.axes[args["weight"]]
    for axis in (*axes, *analysis.axes[args["scales"]]):
        axis.pin(f"rounded in groups at {node.name}")
    return list(axes)


def quantized_input(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`x[..., in]` rounded in groups of its last axis."""
    axes = analysis.axes[args["x"]]
    axes[-1].pin(f"rounded in groups at {node.name}")
    return list(axes)


OWN: dict[object, Rule] = {
    probe_op: probe,
    **dict.fromkeys((masked_mean, masked_layer_norm, masked_rms_norm), masked_norm),
    **dict.fromkeys((nm_linear, block_linear), packed_linear),
    block_embedding: packed_table,
    quantize_weight: quantized_weight,
    quantize_activations: quantized_input,
}
