"""The op `sparsify::nm_linear`: a linear whose weight is packed N:M bytes, `docs/packed.md`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify import native
from sparsify.errors import SparsifyError
from sparsify.ir.ops.op import opname, overload
from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout, dense


@torch.library.custom_op("sparsify::nm_linear", mutates_args=())
def _nm_linear(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    in_features: int,
    out_features: int,
    values: str,
    group: int,
) -> Tensor:
    """`y[..., out] = x[..., in] W^T + b`, `W` packed uint8 `[bytes]` with N of every M columns stored.

    Computed in float32, whatever the dtype of `x` is, and returned in that; with `values` int8 or
    int4 the input is rounded to int8 for each token and `group` of inputs. `group` is 0 for float32.
    On the CPU the compiled kernels do it where they are there, else it is done by unpacking.
    The gradient reaches `x` (straight through the rounding) and the bias; packed weights have none.
    """
    layout = Layout(n, m, in_features, out_features, values, group)
    wide, added = x.float(), None if bias is None else bias.float()
    compiled = x.device.type == "cpu" and native.library() is not None
    run = _compiled if compiled else nm_linear_reference
    return run(wide, packed, added, layout).to(x.dtype)


def _compiled(x: Tensor, packed: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """The product by the compiled kernels; all tensors are on the CPU."""
    x, packed = x.contiguous(), packed.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(*x.shape[:-1], layout.out_features)
    native.nm_linear(
        layout,
        packed.data_ptr(),
        packed.numel(),
        None if bias is None else bias.data_ptr(),
        x.data_ptr(),
        x.numel() // layout.in_features,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


@_nm_linear.register_fake
def _typed(x: Tensor, packed: Tensor, bias: Tensor | None, *numbers: Any) -> Tensor:
    layout = Layout(*numbers)
    if x.shape[-1] != layout.in_features:
        raise SparsifyError(
            f"a packed weight {layout} takes [..., {layout.in_features}], not {x.shape}"
        )
    if packed.dtype != torch.uint8 or list(packed.shape) != [layout.nbytes]:
        raise SparsifyError(f"a packed weight {layout} is uint8 [{layout.nbytes}]")
    return x.new_empty(*x.shape[:-1], layout.out_features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, bias, *layout = inputs
    ctx.save_for_backward(packed)
    ctx.layout = Layout(*layout)
    ctx.bias = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """`dx = dy W`, `db = sum of dy over tokens`."""
    (packed,) = ctx.saved_tensors
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = (gradient.float() @ dense(packed, ctx.layout)).to(gradient.dtype)
    if ctx.bias is not None and ctx.needs_input_grad[2]:
        of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias)
    return of_x, None, of_bias, *(None,) * 6


_nm_linear.register_autograd(_gradients, setup_context=_keep)

# What stands in graphs.
nm_linear = torch.ops.sparsify.nm_linear.default


def packed_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """`y[..., out] = x[..., in] W^T + b[out]`, `W` packed: its bytes are cut by nobody."""
    reason = f"packed into the bytes of {opname(node)} at {node.name}"
    x = analysis.axes[args["x"]]
    bias = [] if args["bias"] is None else analysis.axes[args["bias"]]
    scales = analysis.axes[args["scales"]] if "scales" in args else []
    for axis in (x[-1], *analysis.axes[args["packed"]], *scales, *bias):
        axis.pin(reason)
    return [*x[:-1], analysis.fresh(int(node.meta["val"].shape[-1]), reason)]


def stored_product(args: Sequence[Any], result: Tensor) -> int:
    """Result elements times the N of every M inputs that are stored."""
    n, m = args[3:5]
    return int(result.numel() * args[0].shape[-1] * n // m)


def exact_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b` in the dtype of `x`, which is not rounded; `W [out, in]` unpacked."""
    added = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(x, weight.to(x.dtype), added)


def _unrounded(x: Tensor, packed: Tensor, bias: Tensor | None, *numbers: Any) -> Tensor:
    return exact_product(x, dense(packed, Layout(*numbers)), bias)


OPS = (overload(nm_linear, packed_axes, stored_product, unrounded=_unrounded),)
