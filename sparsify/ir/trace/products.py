"""Products with a stored matrix, however the model's code spells them, become the op that says linear."""

from typing import Any

import torch
from torch import fx

from sparsify.ir.trace.replaced import replaced

aten = torch.ops.aten
_LINEAR = aten.linear.default
_TURNS = {aten.t.default, aten.numpy_T.default, aten.mT.default}
_PRODUCTS = {aten.matmul.default, aten.mm.default}


def as_linears(module: fx.GraphModule) -> None:
    """`x @ W.T`, `x @ W.T + b` and `addmm(b, x, W.T)` become `linear(x, W, b)`.

    `W [out, in]` and `b [out]` are parameters, and the product without its bias has no other reader.
    Passes know linears; a product of two values of the graph is none.
    """
    graph = module.graph
    sizes = {path: value.dim() for path, value in module.named_parameters(remove_duplicate=False)}
    stored = {node: sizes.get(str(node.target)) for node in graph.nodes if node.op == "get_attr"}
    for node in list(graph.nodes):
        if node.target in _PRODUCTS:
            x, turned = node.args
            if stored.get(_before_turn(turned)) == 2:
                _with_bias(replaced(node, _LINEAR, (x, _before_turn(turned))), stored)
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, x, turned = node.args
            if stored.get(_before_turn(turned)) == 2 and stored.get(bias) == 1:
                replaced(node, _LINEAR, (x, _before_turn(turned), bias))


def _before_turn(node: Any) -> Any:
    """The matrix that a node turns; None where it turns none."""
    if not isinstance(node, fx.Node):
        return None
    turns = (
        node.target in _TURNS
        or (node.target is aten.permute.default and node.args[1] in ([1, 0], [-1, -2]))
        or (node.target is aten.transpose.int and node.args[1] != node.args[2])
    )
    return node.args[0] if turns else None


def _with_bias(product: fx.Node, stored: dict[Any, int | None]) -> None:
    """The parameter that is added to a product, which nothing else reads, becomes its bias."""
    user = next(iter(product.users)) if len(product.users) == 1 else None
    if user is None or user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
        return
    bias: Any = user.args[1] if user.args[0] is product else user.args[0]
    if stored.get(bias) == 1 and bias.meta["val"].shape == product.meta["val"].shape[-1:]:
        replaced(user, _LINEAR, (*product.args, bias))
