"""The op of gates: `gate(x, g) = x * clamp(g, 0, 1)`."""

from typing import Any

from torch import Tensor, fx

from sparsify import Op, register_op


def gate(x: Tensor, g: Tensor) -> Tensor:
    """`x [..., features]` times `g [features]`, held in [0, 1]; the identity where `g` is 1."""
    return x * g.clamp(0, 1)


def axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Every feature of `x` has its own gate: the two axes are one, and shrink together."""
    x, g = node.all_input_nodes
    analysis.tie(node, analysis.axes[x][-1], analysis.axes[g][0])
    return list(analysis.axes[x])


register_op(Op(gate, "gates.gate", axes))
