"""Experts that are linears of their own, read off the products with the columns of gates.

    y = sum_e g[..., e:e+1] * expert_e(x)                   or stack(...).sum of the products

An expert is what lies between the values that all experts share and its product. Experts are alike where
the same ops lead to the products, with tensors of the same shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import arguments
from sparsify.ir.axes.rules.route import CASTS
from sparsify.ir.axes.separate_routers import SeparateRouter, column_number
from sparsify.ir.graph import sources
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Expert:
    """One expert: the `column` of the gates, the `product` with it, and the nodes of its own, `inner`.

    `paths` are its tensors, in the same order in every expert of a router.
    """

    column: fx.Node
    product: fx.Node
    inner: frozenset[fx.Node]
    paths: tuple[str, ...]


def separate_experts(program: Program, router: SeparateRouter) -> list[Expert]:
    """The experts of a router by number; OptionError where they are not alike or not apart."""
    columns = sorted((column_number(router.mixed, user), user) for user in router.mixed.users)
    if [number for number, _ in columns] != list(range(router.size)):
        raise _refused(router, "each column of the gates has to be read once")
    products = [_product(router, column) for _, column in columns]
    outputs = [output for _, output in products]
    inners = _inners(router, outputs)
    made = []
    for (_, column), (product, output), inner in zip(columns, products, inners, strict=True):
        pairs = _pairs(outputs[0], output, inners[0], inner)
        if pairs is None:
            raise _refused(router, f"{output.name} is not made as {outputs[0].name} is")
        # In the order of the first: what stands at one place belongs together.
        paths = [str(pairs[n].target) for n in pairs if n.op == "get_attr"]
        made.append(Expert(column, product, frozenset(inner), tuple(paths)))
    _check_alone(program, router, made)
    return made


def _product(router: SeparateRouter, column: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The product with a column, and what is multiplied by it there."""
    gate = column
    while len(gate.users) == 1:
        (user,) = gate.users
        others = [n for n in user.all_input_nodes if n is not gate]
        if user.target is aten.mul.Tensor and len(others) == 1:
            if (
                gate.meta["val"].dim() == others[0].meta["val"].dim()
                and gate.meta["val"].shape[-1] == 1
            ):
                return user, others[0]
            break
        if user.target is not aten.unsqueeze.default and user.target not in CASTS:
            break
        gate = user
    raise _refused(router, f"the column {column.name} does not end in one product with an expert")


def _inners(router: SeparateRouter, outputs: list[fx.Node]) -> list[dict[fx.Node, None]]:
    """The nodes of each expert's own: what its output follows from, and not that of every expert."""
    before = sources(router.scores)
    behind = [dict.fromkeys(_between(output, before)) for output in outputs]
    shared = set(behind[0]).intersection(*behind[1:])
    inners = [{node: None for node in nodes if node not in shared} for nodes in behind]
    seen: set[fx.Node] = set()
    for output, inner in zip(outputs, inners, strict=True):
        if output not in inner or not seen.isdisjoint(inner):
            raise _refused(router, f"{output.name} follows from another expert")
        seen.update(inner)
    return inners


def _between(output: fx.Node, before: set[fx.Node]) -> Iterator[fx.Node]:
    queue, seen = [output], {output}
    while queue:
        node = queue.pop()
        if node in before:
            continue
        yield node
        queue += [source for source in node.all_input_nodes if source not in seen]
        seen.update(node.all_input_nodes)


def _pairs(
    first: fx.Node, other: fx.Node, inner: dict[fx.Node, None], inner_other: dict[fx.Node, None]
) -> dict[fx.Node, fx.Node] | None:
    """Each node of an expert with the one at its place in another; None where they are not alike."""
    pairs: dict[fx.Node, fx.Node] = {}
    queue = [(first, other)]
    while queue:
        one, two = queue.pop()
        if pairs.get(one, two) is not two or (one in inner) != (two in inner_other):
            return None
        if one in pairs:
            continue
        if one not in inner:
            if one is not two:
                return None
            continue
        pairs[one] = two
        (said, parts), (said_too, parts_too) = _said(one), _said(two)
        if said != said_too:
            return None
        queue += list(zip(parts, parts_too, strict=True))
    return pairs if len(set(pairs.values())) == len(pairs) else None


def _said(node: fx.Node) -> tuple[Any, list[fx.Node]]:
    """What a node computes but for the nodes it reads, and these in order."""
    parts: list[fx.Node] = []
    value = node.meta["val"]
    if node.op == "get_attr":
        return (node.op, tuple(value.shape), value.dtype), parts
    rest = fx.map_arg((node.args, node.kwargs), lambda part: parts.append(part))
    return (node.op, node.target, rest, len(parts)), parts


def _check_alone(program: Program, router: SeparateRouter, experts: list[Expert]) -> None:
    """Nobody else may read what belongs to an expert, and nothing may have been added to it."""
    if not set.intersection(*(set(_sums(expert.product)) for expert in experts)):
        raise _refused(router, "their products do not go into one sum")
    readers: dict[str, set[fx.Node]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        readers.setdefault(str(node.target), set()).update(node.users)
    known = {path for path, _ in program.tensors()}
    for expert in experts:
        for path in expert.paths:
            if feature_of(path, known) is not None or not program.tensor(path).is_floating_point():
                raise _refused(
                    router, f"@{path} is no weight of the model; fold or remove it first"
                )
            if not readers[path] <= expert.inner:
                raise _refused(router, f"@{path} is read elsewhere too")
        for node in expert.inner:
            if any(user not in expert.inner and user is not expert.product for user in node.users):
                raise _refused(router, f"{node.name} is read elsewhere too")
        if expert is not experts[0] and rest_of_sum(expert.product) is None:
            raise _refused(router, f"{expert.product.name} goes into no plain sum")


def _sums(product: fx.Node) -> Iterator[fx.Node]:
    """The sums that hold a product once, as long as nobody reads the smaller ones."""
    node = product
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.add.Tensor:
            once, summed = len(user.all_input_nodes) + _scalars(user) == 2, user
            if not once or arguments(user)["alpha"] != 1:
                return
        elif node is product and rest_of_sum(product) is not None and len(user.users) == 1:
            (summed,) = user.users  # a stack, summed up again
        else:
            return
        if summed.meta["val"].shape != product.meta["val"].shape:
            return
        yield summed
        node = summed


def _scalars(node: fx.Node) -> int:
    return sum(not isinstance(part, fx.Node) for part in node.args[:2])


def rest_of_sum(product: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """The node where a product is added, and what is added there but for it; None for no plain sum."""
    # A sum that nobody reads any more is one that another product was taken out of.
    totals = [user for user in product.users if user.users or user.op == "output"]
    if len(totals) != 1:
        return None
    total = totals[0]
    if total.target is aten.stack.default:
        stacked, dim = arguments(total).values()
        rank = total.meta["val"].dim()
        for user in total.users:
            summed = user.target is aten.sum.dim_IntList
            if not summed or [d % rank for d in arguments(user)["dim"] or []] != [dim % rank]:
                return None
        return total, [node for node in stacked if node is not product]
    rest = [node for node in total.all_input_nodes if node is not product]
    if total.target is not aten.add.Tensor or len(rest) != 1 or arguments(total)["alpha"] != 1:
        return None
    one, two = (node.meta["val"] for node in (total, rest[0]))
    return (total, rest) if one.shape == two.shape and one.dtype == two.dtype else None


def _refused(router: SeparateRouter, why: str) -> OptionError:
    return OptionError(f"the experts of @{router.weight} cannot be read: {why}")
