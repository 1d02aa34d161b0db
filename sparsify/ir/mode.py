"""Training and evaluation mode of a flat graph: dropout is a constant in its nodes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import fx, nn

aten = torch.ops.aten

# Ops that are the identity, or a fixed function, in evaluation mode, and the place of their training flag;
# the probability itself stays as traced.
DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
FLAGS = {
    **dict.fromkeys(DROPOUTS, 2),
    aten.native_dropout.default: 2,
    aten.rrelu.default: 3,
    **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), 6),
}
_SDPA = aten.scaled_dot_product_attention.default


def is_switch(node: fx.Node) -> bool:
    """Whether a node is random in training mode alone, and `set_training` turns that on and off."""
    return node.target in FLAGS or node.target is _SDPA


def set_training(module: fx.GraphModule, training: bool) -> None:
    """Switch dropout on or off in the graph; does nothing when it already stands so."""
    changed = False
    for node in module.graph.nodes:
        if node.target in FLAGS:
            changed |= _set_flag(node, FLAGS[node.target], training)
        elif node.target is _SDPA:
            changed |= _set_probability(node, training)
    module.training = training
    if changed:
        module.recompile()


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module, and dropout in a graph, is as it was before."""
    before = [(part, part.training) for part in module.modules()]
    switched = isinstance(module, fx.GraphModule) and _drops(module)
    if isinstance(module, fx.GraphModule):
        set_training(module, False)
    else:
        module.eval()
    try:
        yield
    finally:
        if isinstance(module, fx.GraphModule) and switched:
            set_training(module, True)
        for part, training in before:
            part.training = training


def _drops(module: fx.GraphModule) -> bool:
    """Whether dropout is on in a graph."""
    for node in module.graph.nodes:
        if node.target in FLAGS and _at(node, FLAGS[node.target]):
            return True
        if node.target is _SDPA and _probability(node):
            return True
    return False


def _at(node: fx.Node, index: int) -> bool:
    return bool(node.args[index]) if len(node.args) > index else False


def _probability(node: fx.Node) -> float:
    """Attention keeps its dropout probability as argument 4."""
    value = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return float(value)  # type: ignore[arg-type]


def _set_flag(node: fx.Node, index: int, training: bool) -> bool:
    if _at(node, index) == training:
        return False
    node.update_arg(index, training)
    return True


def _set_probability(node: fx.Node, training: bool) -> bool:
    """The traced probability is kept aside."""
    current = _probability(node)
    traced = node.meta.setdefault("dropout_p", current)
    wanted = traced if training else 0.0
    if current == wanted:
        return False
    if len(node.args) > 4:
        node.update_arg(4, wanted)
    else:
        node.update_kwarg("dropout_p", wanted)
    return True
