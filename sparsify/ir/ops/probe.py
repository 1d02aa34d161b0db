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


def probe_experts(
    x: Tensor, ends: Tensor | None, tokens: Tensor | None, *statistics: Tensor
) -> Tensor:
    """The identity on `x [rows, features]`, those of an expert up to its entry of `ends [experts]`.

    Without `ends` they are `x [experts, rows, features]`. `tokens [rows]` is the number of each row's token.
    """
    return x


def _axes_of_experts(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Statistics `[experts]`, `[experts, features]`, `[experts, features, features]`."""
    x, ends, _, *statistics = node.args
    axes = analysis.axes[x]
    experts = axes[0] if ends is None else analysis.axes[ends][0]
    for statistic in statistics:
        first, *others = analysis.axes[statistic]
        analysis.tie(node, experts, first)
        for axis in others:
            analysis.tie(node, axes[-1], axis)
    return list(axes)


OPS = (
    Op(probe, "sparsify.probe", _axes),
    Op(probe_experts, "sparsify.probe_experts", _axes_of_experts),
    Op(probe_routes, "sparsify.probe_routes", _axes_of_routes),
)
