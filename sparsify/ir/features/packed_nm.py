"""Packed linears: the rewrite of a linear into `sparsify.nm_linear`."""

from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.features.quantizers import drop_quantizers
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.ops.packed_experts import nm_experts
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import packed
from sparsify.ir.views.linear import Linear, own_bias, product_at
from sparsify.tensors.packing.packed import Layout, pack

aten = torch.ops.aten


def pack_linear(program: Program, linear: Linear, value: Tensor, layout: Layout) -> None:
    """Let a linear read a packed weight in place of its dense one and its quantizers.

    The bytes are uint8 `[bytes]`, of experts `[experts, bytes]`. The dense weight goes with the next `sweep`
    once nobody reads it. Raises OptionError for a product that the model scales (`addmm` with `alpha` or
    `beta`).
    """
    name = packed(linear.weight)

    def make(writer: Writer, x: fx.Node, bias: fx.Node | None) -> fx.Node:
        if not program.has(name):
            program.put(name, value)
        if linear.stacked:
            return writer.call(nm_experts, x, writer.read(name), linear.ends, *astuple(layout))
        return writer.call(nm_linear, x, writer.read(name), bias, *astuple(layout))

    replace_product(program, linear, layout.out_features, make)


def replace_product(
    program: Program,
    linear: Linear,
    outputs: int,
    make: Callable[[Writer, fx.Node, fx.Node | None], fx.Node],
) -> None:
    """Let `make` write a linear anew, from its unrounded input and a bias `[out]` or None.

    Any other bias is added behind. Raises OptionError for a product that the model scales.
    """
    if linear.node.target is aten.addmm.default and linear.node.kwargs:
        raise OptionError(f"@{linear.weight} is in a product that the model scales; leave it out")
    drop_quantizers(linear)
    fresh = product_at(program, linear.node)
    assert fresh is not None
    bias, is_vector = _bias(fresh, outputs)
    writer = Writer(program, before=fresh.node)
    made = make(writer, fresh.x, bias if is_vector else None)
    if bias is not None and not is_vector:
        made = writer.call(aten.add.Tensor, made, bias)
    redirect(fresh.node, made)


@dataclass(frozen=True)
class PackedProduct:
    """What a linear of a program computes, from packed bytes that are no part of the program."""

    x: fx.Node
    bias: fx.Node | None
    value: Tensor
    layout: Layout

    def __call__(self, read: Callable[[fx.Node], Tensor]) -> Tensor:
        """`y = x W^T + b [..., out]`; `read` gives the value of a node."""
        bias = None if self.bias is None else read(self.bias)
        y: Tensor = nm_linear(read(self.x), self.value, bias, *astuple(self.layout))
        return y


def packed_product(linear: Linear, weight: Tensor, layout: Layout) -> PackedProduct | None:
    """A linear's product from a weight `[out, in]` that has the zeros of a layout.

    None where it is more than a product and a bias `[out]`.
    """
    bias, is_vector = _bias(linear, layout.out_features)
    more = linear.node.kwargs.keys() - {"bias"} or (bias is not None and not is_vector)
    if more or linear.stacked:
        return None
    return PackedProduct(linear.x, bias, pack(weight, layout), layout)


def _bias(linear: Linear, outputs: int) -> tuple[fx.Node | None, bool]:
    """The bias of a linear, and whether it is a vector `[out]`: `addmm` adds whatever broadcasts."""
    bias = own_bias(linear)
    return bias, bias is not None and tuple(bias.meta["val"].shape) == (outputs,)
