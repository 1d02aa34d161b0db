"""Training and evaluation mode of a flat graph: dropout is a constant in its nodes."""

import torch
from torch import fx

aten = torch.ops.aten

# Where each op keeps its probability and its training flag; the probability itself stays as traced.
_DROPOUT = {aten.dropout.default: 2, aten.feature_dropout.default: 2}
_SDPA = aten.scaled_dot_product_attention.default


def set_training(module: fx.GraphModule, training: bool) -> None:
    """Switch dropout on or off in the graph; does nothing when it already stands so."""
    changed = False
    for node in module.graph.nodes:
        if node.target in _DROPOUT:
            changed |= _set_flag(node, _DROPOUT[node.target], training)
        elif node.target is _SDPA:
            changed |= _set_probability(node, training)
    torch.nn.Module.train(module, training)
    if changed:
        module.recompile()


def _set_flag(node: fx.Node, index: int, training: bool) -> bool:
    if node.args[index] == training:
        return False
    node.update_arg(index, training)
    return True


def _set_probability(node: fx.Node, training: bool) -> bool:
    """Attention keeps its dropout probability as argument 4; the traced one is kept aside."""
    current = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    traced = node.meta.setdefault("dropout_p", current)
    wanted = traced if training else 0.0
    if current == wanted:
        return False
    if len(node.args) > 4:
        node.update_arg(4, wanted)
    else:
        node.update_kwarg("dropout_p", wanted)
    return True
