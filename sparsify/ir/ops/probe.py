"""The ops of probes: the identity, which keeps tensors beside an activation in the graph."""

from typing import Any

from torch import Tensor, fx

from sparsify.ir.ops.op import Op


def probe(x: Tensor, *statistics: Tensor) -> Tensor:
    """The identity on `x [..., features]`; `calibrate` fills the statistics while it interprets."""
    return x


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Statistics `[features]`, `[features, features]` have the last axis of `x`."""
    x, *statistics = node.all_input_nodes
    axes = analysis.axes[x]
    for statistic in statistics:
        for axis in analysis.axes[statistic]:
            if axis.root().size == axes[-1].root().size:
                analysis.tie(node, axes[-1], axis)
            else:
                axis.pin(f"probe at {node.name} keeps another kind of statistic in it")
    return list(axes)


def probe_routes(numbers: Tensor, scores: Tensor, *statistics: Tensor) -> Tensor:
    """The identity on the numbers `[tokens, k]` of chosen experts, beside the scores `[tokens, experts]`."""
    return numbers


def _axes_of_routes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Statistics `[experts]`, `[experts, experts]` have the last axis of the scores."""
    numbers, scores, *statistics = node.all_input_nodes
    for statistic in statistics:
        for axis in analysis.axes[statistic]:
            analysis.tie(node, analysis.axes[scores][-1], axis)
    return list(analysis.axes[numbers])


OPS = (
    Op(probe, "sparsify.probe", _axes),
    Op(probe_routes, "sparsify.probe_routes", _axes_of_routes),
)
