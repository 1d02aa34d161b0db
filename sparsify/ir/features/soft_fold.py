"""Where the soft values of a mask go when it becomes boolean: into weights, if they can be there exactly.

channels, heads   linear(x * expand(z), W)              ->  W diag(expand(z))
hidden            linear(norm(x) * z, W)                ->  the gain (and bias) of the norm times z
                  linear(x * z, W)                      ->  W diag(z), where x is no norm of its own
layers            x + z f(x)                            ->  the last weights (and biases) of f times z

One convention: what reads the residual width is scaled, and nothing that writes it. A tensor that anything
else reads as well, as a tied embedding, takes no values in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.axes.residual import blocks, terms_of
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import block_mask_path
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.features.width_mask import width_masks
from sparsify.ir.ops.masked_norms import masked_layer_norm, masked_rms_norm
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, consumers, feature_size, own_bias, product_at

aten = torch.ops.aten
_NORMS = (
    aten.layer_norm.default,
    aten.rms_norm.default,
    masked_layer_norm,
    masked_rms_norm,
)
# Ops whose value is scaled when what they take first is.
_THROUGH = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.to.dtype,
    aten.type_as.default,
    aten.dropout.default,
    aten.sum.dim_IntList,
    aten.index.Tensor,
    aten.index_select.default,
    aten.slice.Tensor,
)
# Those of them that leave the last dimension alone, where its size stays.
_KEEPING = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.to.dtype,
    aten.type_as.default,
    aten.dropout.default,
)


@dataclass(frozen=True)
class Taker:
    """A tensor that takes the values of a mask in: along a dimension, or as a whole where that is None."""

    path: str
    dim: int | None

    def scale(self, program: Program, values: Tensor) -> None:
        """Multiply by values `[mask]`, each over an equal run of the dimension."""
        tensor = program.tensor(self.path)
        if self.dim is not None:
            size = tensor.shape[self.dim]
            values = values.repeat_interleave(size // values.numel())
            values = values.reshape([size, *[1] * (tensor.dim() - 1 - self.dim % tensor.dim())])
        with torch.no_grad():
            tensor.mul_(values.to(tensor.device, tensor.dtype))


def takers(program: Program, kind: str, path: str) -> frozenset[Taker] | None:
    """The tensors that take in the soft values of the mask at a path; None where it cannot be exact."""
    if kind == "hidden":
        return _of_width(program, path)
    if kind == "layers":
        return _of_layer(program, path)
    views = [mask.linear for mask in group_masks(program) if mask.path == path]
    return _columns(program, views)


def _of_width(program: Program, path: str) -> frozenset[Taker] | None:
    (mask,) = (mask for mask in width_masks(program) if mask.path == path)
    inputs = [node for node in mask.nodes if node.target is aten.mul.Tensor]
    found = set[Taker]()
    read = list[Linear]()
    for node in inputs:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        gain = _gain(program, source) if set(source.users) <= set(inputs) else None
        if gain is not None:
            found |= gain
            continue
        views = [product_at(program, user) for user in node.users]
        read += [view for view in views if view is not None]
        if None in views:
            return None
    columns = _columns(program, read)
    return None if columns is None else columns | found


def _of_layer(program: Program, path: str) -> frozenset[Taker] | None:
    analysis = analyse(program)
    (block,) = (b for b in blocks(analysis, "layers") if block_mask_path(b) == path)
    return _all(_factors(program, term) for term, _ in terms_of(analysis, block))


def _columns(program: Program, views: Iterable[Linear]) -> frozenset[Taker] | None:
    """The columns of matrices that these products alone read."""
    found, entries = set[Taker](), set[fx.Node]()
    for view in views:
        entries |= {view.node, view.reader, view.operand}
        found.add(Taker(view.weight, -2 if view.transposed else -1))
    for taker in found:
        if not entries.issuperset(consumers(program, taker.path)):
            return None
    return frozenset(found)


def _gain(program: Program, x: fx.Node) -> frozenset[Taker] | None:
    """The gain, and the bias, of the norm whose value is `x [..., hidden]`."""
    while x.target in _KEEPING and feature_size(x) == feature_size(source := x.all_input_nodes[0]):
        if len(source.users) > 1:
            return None
        x = source
    if x.target in _NORMS:
        return _all(_vector(program, part, 0) for part in _learned(x))
    if x.target is aten.mul.Tensor:
        parts = [part for part in x.args if isinstance(part, fx.Node)]
        found = (_vector(program, part, 0, feature_size(x)) for part in parts)
        return next((gain for gain in found if gain is not None), None)
    return None


def _factors(program: Program, node: fx.Node) -> frozenset[Taker] | None:
    """The tensors that a value, read once, is in proportion to."""
    if len(node.users) > 1:
        return None
    view = product_at(program, node)
    if view is not None:
        bias = own_bias(view)
        whole = _alone(program, view.weight)
        rest = frozenset[Taker]() if bias is None else _vector(program, bias, None)
        return None if rest is None or whole is None else whole | rest
    if node.op == "get_attr":
        return _alone(program, str(node.target))
    parts = [part for part in node.args if isinstance(part, fx.Node)]
    if node.target in _THROUGH:
        return _factors(program, parts[0])
    if node.target is aten.mul.Tensor:
        return next((v for part in parts if (v := _factors(program, part)) is not None), None)
    if node.target is aten.add.Tensor and len(parts) == 2:
        return _all(_factors(program, part) for part in parts)
    if node.target in _NORMS:
        return _all(_vector(program, part, None) for part in _learned(node))
    return None


def _learned(norm: fx.Node) -> Iterator[fx.Node]:
    """The gain and the bias of a norm, the residual width of a masked one passed over."""
    first = 3 if norm.target in (masked_layer_norm, masked_rms_norm) else 2
    yield from (part for part in norm.args[first : first + 2] if isinstance(part, fx.Node))


def _vector(
    program: Program, node: fx.Node, dim: int | None, size: int | None = None
) -> frozenset[Taker] | None:
    """A learned vector, of a size if one is named, that nothing else reads."""
    if node.op != "get_attr":
        return None
    shape = tuple(program.tensor(str(node.target)).shape)
    fits = len(shape) == 1 and size in (None, *shape)
    return _alone(program, str(node.target), dim) if fits else None


def _alone(program: Program, path: str, dim: int | None = None) -> frozenset[Taker] | None:
    """A parameter that is read in one place."""
    learned = isinstance(program.tensor(path), torch.nn.Parameter)
    return frozenset({Taker(path, dim)}) if learned and len(consumers(program, path)) == 1 else None


def _all(parts: Iterable[frozenset[Taker] | None]) -> frozenset[Taker] | None:
    """All of them together; None where there is one that is none, or where there are none."""
    found = list(parts)
    if not found or None in found:
        return None
    return frozenset().union(*(part for part in found if part is not None))
