"""The arithmetic of a program: multiply-adds read off the types of its nodes at given sizes."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.errors import SparsifyError
from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.ops.op import Cost, product
from sparsify.ir.ops.packed_experts import nm_experts
from sparsify.ir.ops.registry import op_of
from sparsify.ir.program import Program
from sparsify.ir.trace.made_up import SIGNALS

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one forward: of `attention`, and of all else."""

    attention: int
    others: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.attention + self.others


def multiply_adds(program: Program, batch: int, length: int, *, packed_whole: bool = False) -> int:
    """Multiply-adds of one forward at `[batch, length]`, zeros in dense weights counted like any number.

    Counted are linear maps, matrix products, attention (keys that a mask hides included),
    convolutions and grouped products; elementwise work and softmax are not. A packed linear counts
    the N of every M that it multiplies by, or all with `packed_whole`.
    The dimension called `batch` takes `batch`, every other varying dimension takes `length`, but for samples
    and frames of a sound, which are as many as in the program's sample.
    """
    return work(program, batch, length, packed_whole=packed_whole).total


def work(program: Program, batch: int, length: int, *, packed_whole: bool = False) -> Work:
    """The multiply-adds of `multiply_adds`, those of attention apart.

    Attention is the op of that name, and every product of two things that both follow from the inputs.
    Rows that are split by sizes known at run time, for experts that are alike, count as split evenly; rows
    that a condition picks count as all picked. Raises SparsifyError for other sizes that a run alone knows.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = fake_inputs(program, batch, length, mode)
    values: dict[fx.Node, Any] = {}
    varying: set[fx.Node] = set()
    attention = others = 0
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                if node.target is aten.split_with_sizes.default:
                    args = (args[0], _even(*args), *args[2:])
                values[node] = _computed(node.target, args, kwargs)
                whole = packed_whole and node.target in (nm_linear, nm_experts)
                cost = product(0) if whole else _cost(node.target)
                done = cost(args, values[node])
                if _attends(node, varying):
                    attention += done
                else:
                    others += done
            elif node.op == "placeholder":
                values[node] = inputs[str(node.target)]
            elif node.op == "get_attr":
                tensor = program.tensor(str(node.target))
                values[node] = mode.from_tensor(tensor, static_shapes=True)
            if node.op == "placeholder" or any(n in varying for n in node.all_input_nodes):
                varying.add(node)
    if not isinstance(attention + others, int):
        raise SparsifyError(
            "multiply-adds cannot be told: a product is of a size that is known only at run time"
        )
    return Work(attention, others)


def _computed(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an op gives; where a condition picks rows, as if it held for all of them."""
    if target is aten.nonzero.default:
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long)
    only = args[1][0] if target in _PICKING and len(args[1]) == 1 else None
    if not isinstance(only, Tensor) or only.dtype != torch.bool:
        return target(*args, **kwargs)
    return args[0] if target in _PUTTING else args[0].flatten(0, only.dim() - 1)


def _even(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[int]:
    """Sizes of a split; those known only at run time as even parts of what there is."""
    if all(isinstance(size, int) for size in sizes):
        return list(sizes)
    part, more = divmod(int(x.shape[dim]), len(sizes))
    return [part + (place < more) for place in range(len(sizes))]


def _attends(node: fx.Node, varying: Container[fx.Node]) -> bool:
    """Whether a node multiplies what follows from the inputs by what does so too."""
    if node.target is aten.scaled_dot_product_attention.default:
        return True
    return node.target in _OF_TWO and sum(n in varying for n in node.all_input_nodes) > 1


def fake_inputs(
    program: Program, batch: int, length: int, mode: FakeTensorMode
) -> dict[str, Tensor]:
    """Fake inputs with every symbolic dimension replaced by its number."""
    inputs = {}
    for key, value in program.sample.items():
        dims = program.dynamic.get(key, {})
        named = [(dims.get(i), size) for i, size in enumerate(value.shape)]
        sizes = [
            size if name is None or name in SIGNALS else batch if name == "batch" else length
            for name, size in named
        ]
        # A meta tensor costs nothing however large the sizes are.
        with mode:
            inputs[key] = torch.empty(sizes, dtype=value.dtype, device=value.device)
    return inputs


def _cost(target: Any) -> Cost:
    own = op_of(target)
    known = own.cost if own is not None else _COSTS.get(target) or _NAMED.get(str(target))
    return known or (lambda args, result: 0)


def _attention(args: Sequence[Any], result: Tensor) -> int:
    """`q k^T` and `weights v`: q `[b, h, t, d]`, k `[b, g, s, d]`, v `[b, g, s, e]`."""
    q, k, v = args[:3]
    return int(math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


def _convolution(args: Sequence[Any], result: Tensor) -> int:
    """Result elements times the inputs each reads: weight `[out, in / groups, *window]`."""
    return int(result.numel() * math.prod(args[1].shape[1:]))


def _scattering(args: Sequence[Any], result: Tensor) -> int:
    """Input elements times the outputs each touches: weight `[in, out / groups, *window]`."""
    return int(args[0].numel() * math.prod(args[1].shape[1:]))


def _any_convolution(args: Sequence[Any], result: Tensor) -> int:
    transposed = args[6]
    return _scattering(args, result) if transposed else _convolution(args, result)


def _einsum(args: Sequence[Any], result: Tensor) -> int:
    """The product of the sizes of all letters, for two operands; a sum of one costs nothing."""
    equation, operands = args[0], args[1]
    if len(operands) != 2 or "." in equation:
        return 0
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        sizes.update(zip(term, operand.shape, strict=True))
    return math.prod(sizes.values())


_COSTS: Mapping[Any, Cost] = {
    aten.linear.default: product(0),
    aten.mm.default: product(0),
    aten.bmm.default: product(0),
    aten.mv.default: product(0),
    aten.dot.default: product(0),
    aten.matmul.default: product(0),
    aten.addmm.default: product(1),
    aten.baddbmm.default: product(1),
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.padding: _convolution,
    aten.convolution.default: _any_convolution,
    aten.conv_transpose1d.default: _scattering,
    aten.conv_transpose2d.input: _scattering,
    aten.conv_transpose3d.input: _scattering,
}
_PUTTING = frozenset((aten.index_put.default, aten.index_put_.default))
_PICKING = frozenset((aten.index.Tensor, *_PUTTING))
# Products that may be of two activations; those with weights computed at run time are linear maps.
_OF_TWO = frozenset(
    (
        aten.mm.default,
        aten.bmm.default,
        aten.matmul.default,
        aten.baddbmm.default,
        aten.einsum.default,
    )
)
# Rows are already grouped, `[n, in]`.
_NAMED: Mapping[str, Cost] = dict.fromkeys(GROUPED, product(0))
