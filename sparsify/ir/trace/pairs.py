"""Complex numbers become pairs of real ones, as rotary positions are written by some models.

x: complex [...]  ->  x: real [..., 2]
view_as_complex(x)  ->  x                      view_as_real(x)  ->  x
polar(r, t)         ->  [r cos t, r sin t]
a * b               ->  [a0 b0 - a1 b1, a0 b1 + a1 b0]

No axis rule and no runtime knows complex numbers. A graph with an op on them that has no such form stays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# Ops that move elements, by the places of the dimensions they name.
_DIMS = {
    aten.unsqueeze.default: (1,),
    aten.select.int: (1,),
    aten.slice.Tensor: (1,),
    aten.squeeze.dim: (1,),
    aten.flip.default: (1,),
    aten.transpose.int: (1, 2),
}
_SIZES = {aten.expand.default, aten.view.default, aten.reshape.default}
_SAME = {aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default}
_CASTS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default}


def as_pairs(module: fx.GraphModule) -> None:
    """Rewrite all complex numbers of a graph, or none."""
    nodes = [node for node in module.graph.nodes if _is_complex(node) or _reads_complex(node)]
    if not nodes or any(_form(node) is None for node in nodes):
        return
    pairs: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        with module.graph.inserting_before(node):
            form = _form(node)
            assert form is not None
            made = form(_Writer(module.graph, node), node, pairs)
        if _is_complex(node):
            pairs[node] = made
        else:
            node.replace_all_uses_with(made)
    for node in reversed(nodes):
        module.graph.erase_node(node)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()


def _reads_complex(node: fx.Node) -> bool:
    return node.op == "call_function" and any(_is_complex(n) for n in node.all_input_nodes)


class _Writer:
    """Makes typed nodes in the place and the module of another."""

    def __init__(self, graph: fx.Graph, like: fx.Node) -> None:
        self._graph, self._like = graph, like

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        node = self._graph.call_function(target, args)
        given = fx.node.map_arg(args, lambda n: n.meta["val"])
        node.meta = {**self._like.meta, "val": target(*given)}
        return node

    def pair(self, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        return self(aten.stack.default, [real, imaginary], -1)

    def parts(self, pair: fx.Node) -> tuple[fx.Node, fx.Node]:
        return self(aten.select.int, pair, -1, 0), self(aten.select.int, pair, -1, 1)


Pairs = Mapping[fx.Node, fx.Node]
Form = Callable[[_Writer, fx.Node, Pairs], fx.Node]


def _form(node: fx.Node) -> Form | None:
    """How an op on complex numbers is written with pairs."""
    target: Any = node.target
    if target in _FORMS:
        return _FORMS[target]
    if target in _DIMS or target in _SIZES or target is aten.permute.default:
        return _moved
    if target in _SAME or target in _CASTS:
        return _kept if _is_complex(node) else None
    return None


def _polar(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    length, angle = node.args
    real, imaginary = write(aten.cos.default, angle), write(aten.sin.default, angle)
    return write.pair(
        write(aten.mul.Tensor, length, real), write(aten.mul.Tensor, length, imaginary)
    )


def _joined(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    real, imaginary = node.args
    assert isinstance(real, fx.Node)
    assert isinstance(imaginary, fx.Node)
    return write.pair(real, imaginary)


def _same(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    """What a pair is read from, or the pair itself."""
    (source,) = node.args
    assert isinstance(source, fx.Node)
    return pairs.get(source, source)


def _kept(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    return pairs[node.all_input_nodes[0]]


def _moved(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    """The same move of all dimensions but the last."""
    source, *rest = node.args
    assert isinstance(source, fx.Node)
    target: Any = node.target
    values: list[Any] = list(rest)
    if target in _SIZES:
        values[0] = [*values[0], 2]
    elif target is aten.permute.default:
        count = source.meta["val"].dim()
        values[0] = [*(dim % count for dim in values[0]), count]
    else:
        for place in _DIMS[target]:
            values[place - 1] = _before_last(values[place - 1])
    return write(target, pairs[source], *values)


def _before_last(dim: Any) -> Any:
    if isinstance(dim, list | tuple):
        return [_before_last(each) for each in dim]
    return dim if dim >= 0 else dim - 1


def _product(write: _Writer, node: fx.Node, pairs: Pairs) -> fx.Node:
    multiply = aten.mul.Tensor
    found = [
        pairs[factor] for factor in node.args if isinstance(factor, fx.Node) and factor in pairs
    ]
    if len(found) == len(node.args):
        (a, b), (c, d) = (write.parts(pair) for pair in found)
        real = write(aten.sub.Tensor, write(multiply, a, c), write(multiply, b, d))
        imaginary = write(aten.add.Tensor, write(multiply, a, d), write(multiply, b, c))
        return write.pair(real, imaginary)
    (factor,) = (f for f in node.args if not isinstance(f, fx.Node) or f not in pairs)
    if isinstance(factor, fx.Node) and factor.meta["val"].dim():
        factor = write(aten.unsqueeze.default, factor, -1)
    return write(multiply, found[0], factor)


_FORMS: dict[Any, Form] = {
    aten.polar.default: _polar,
    aten.complex.default: _joined,
    aten.view_as_complex.default: _same,
    aten.view_as_real.default: _same,
    aten.mul.Tensor: _product,
    aten.real.default: lambda write, node, pairs: write.parts(_kept(write, node, pairs))[0],
    aten.imag.default: lambda write, node, pairs: write.parts(_kept(write, node, pairs))[1],
}
