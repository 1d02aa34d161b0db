"""A bias behind a linear, `y + b`, its insertion, reading and folding into the linear's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from sparsify.errors import OptionError
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import added_bias
from sparsify.ir.views.linear import Linear, consumers, linear_at, linears, out_in, own_bias

aten = torch.ops.aten


@dataclass(frozen=True)
class AddedBias:
    """The sum `y + b` behind a linear; `path` is that of b `[out]`."""

    linear: Linear
    node: fx.Node
    y: fx.Node
    path: str


def add_bias(program: Program, linear: Linear) -> None:
    """Add a trainable b `[out]`, zeros at first, to what a linear gives."""
    weight = program.tensor(linear.weight)
    writer = Writer(program, after=linear.node)
    zeros = torch.zeros(out_in(linear, weight).shape[0]).to(weight)
    b = writer.parameter(added_bias(linear.weight), zeros)
    total = writer.call(aten.add.Tensor, linear.node, b)
    redirect(linear.node, total, but=(total,))


def added_biases(program: Program) -> list[AddedBias]:
    """Every bias that `add_bias` has put behind a linear, in graph order."""
    views = {added_bias(view.weight): view for view in linears(program)}
    found = []
    for node in program.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        y, b = node.args
        path = str(b.target) if isinstance(b, fx.Node) and b.op == "get_attr" else ""
        if path in views and isinstance(y, fx.Node):
            found.append(AddedBias(views[path], node, y, path))
    return found


def refuse_unbiasable(program: Program, views: Sequence[Linear]) -> None:
    """Raise OptionError for a linear into which a bias could not be folded: a shared weight or bias."""
    every = linears(program)
    for view in views:
        own = own_bias(view)
        shared = sum(other.weight == view.weight for other in every) > 1
        if own is not None and not shared:
            plain = own.op == "get_attr" and program.tensor(str(own.target)).dim() == 1
            shared = not plain or len(consumers(program, str(own.target))) > 1
        if shared:
            raise OptionError(
                f"@{view.weight} shares its weight or its bias with another op, so that a bias of its "
                "own cannot be added; leave it out of targets"
            )


def fold_bias(program: Program, found: AddedBias) -> None:
    """Take the sum out and add b to the linear's own bias, which is made where there is none.

    A b of zeros leaves the linear as it is.
    """
    view = linear_at(program, found.linear.node)
    assert view is not None
    b, own = program.tensor(found.path).detach(), own_bias(view)
    redirect(found.node, found.y)
    if own is not None:
        with torch.no_grad():
            program.tensor(str(own.target)).add_(b)
    elif bool(b.any()):
        writer = Writer(program, before=view.node)
        bias = writer.parameter(_name(program, view.weight), b.clone())
        view.node.args = (*view.node.args[:2], bias)
    sweep(program)


def _name(program: Program, weight: str) -> str:
    """What a weight's bias is called where models say `weight` and `bias`; never a name that is taken."""
    owner, _, last = weight.rpartition(".")
    usual = f"{owner}.bias" if owner else "bias"
    return usual if last == "weight" and not program.has(usual) else f"{weight}_bias"


def _drop(program: Program, found: AddedBias) -> None:
    redirect(found.node, found.y)
    sweep(program)


FEATURES = (Feature("bias", (added_bias(""),), added_biases, _drop),)
