"""What an export leaves as conditions on sizes, since it could not see that they always hold.

`torch.export` refuses a model where it cannot prove a condition for every size that it is asked for, such as
`min(2048, length) <= length`. Asked to, it writes conditions into the graph. Here they are tried on sizes:
all small ones, and those around each number that stands in a condition; between two of which one holds and
the other does not, the border is found by halving.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sparsify.errors import TraceError

_ASSERT = torch.ops.aten._assert_scalar.default
_SMALL = 512  # every size up to this one is tried
_OTHERS = (0, 1, 5)  # by how much other dimensions are moved meanwhile


def within_conditions(
    exported: ExportedProgram, sample: Mapping[str, Tensor], shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """The shapes of an export with each dimension cut to the sizes that its conditions hold for.

    `shapes` are dimensions by input, as given to the export. Raises TraceError for a condition that does
    not hold for the sample's own sizes, whatever it bounds, or is about something else than sizes.
    """
    symbols = _symbols(exported, shapes)
    conditions = [found for node in exported.graph.nodes if (found := _condition(node)) is not None]
    unknown = {str(s) for c in conditions for s in c.free_symbols if s not in symbols}
    if unknown:
        raise TraceError(
            f"the model's code asks for values ({', '.join(sorted(unknown))}) on its way"
        )
    here = {s: int(sample[key].shape[dim]) for s, (key, dim) in symbols.items()}
    cut = {}
    for symbol, (key, dim) in symbols.items():
        asked = shapes[key][dim]
        least, most = _ends(exported, symbol, asked)
        mine = [c for c in conditions if symbol in c.free_symbols]
        least, most = _holding(mine, symbol, here, least, most)
        cut[asked] = asked if (least, most) == (asked.min, asked.max) else _dim(asked, least, most)
    return {key: {d: cut.get(size, size) for d, size in e.items()} for key, e in shapes.items()}


def _symbols(
    exported: ExportedProgram, shapes: Mapping[str, Any]
) -> dict[sympy.Symbol, tuple[str, int]]:
    """The input and dimension of each symbol, the first that has it."""
    inputs = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    found: dict[sympy.Symbol, tuple[str, int]] = {}
    for key, name in zip(shapes, exported.graph_signature.user_inputs, strict=True):
        for dim in shapes[key]:
            size = inputs[str(name)].meta["val"].shape[dim]
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                found.setdefault(size.node.expr, (key, dim))
    return found


def _condition(node: torch.fx.Node) -> Any:
    """The formula of a condition that may fail."""
    if node.target is not _ASSERT:
        return None
    given = node.args[0]
    value = given.meta["val"] if isinstance(given, torch.fx.Node) else given
    formula = value.node.expr if isinstance(value, torch.SymBool) else sympy.sympify(value)
    return None if formula == sympy.true else formula


def _ends(exported: ExportedProgram, symbol: sympy.Symbol, asked: Any) -> tuple[int, int]:
    """What the export itself has found of a size, within what it was asked for."""
    span = exported.range_constraints.get(symbol)
    if span is None:
        return int(asked.min), int(asked.max)
    return max(int(asked.min), int(span.lower)), min(int(asked.max), int(span.upper))


def _holding(
    conditions: list[Any],
    symbol: sympy.Symbol,
    here: dict[sympy.Symbol, int],
    least: int,
    most: int,
) -> tuple[int, int]:
    """The sizes around the sample's own for which all conditions hold."""

    def holds(size: int) -> bool:
        return all(
            c.subs({s: size if s is symbol else n + more for s, n in here.items()}) == sympy.true
            for c in conditions
            for more in (_OTHERS if len(c.free_symbols) > 1 else (0,))
        )

    own = here[symbol]
    if not holds(own):
        raise TraceError(f"the model's code takes another way at {own}")
    points = sorted({p for p in _points(conditions, least, most) if least <= p <= most} | {own})
    upper = next((p for p in points if p > own and not holds(p)), None)
    lower = next((p for p in reversed(points) if p < own and not holds(p)), None)
    if upper is not None:
        most = _border(holds, max(p for p in points if p < upper), upper)
    if lower is not None:
        least = _border(holds, min(p for p in points if p > lower), lower)
    return least, most


def _points(conditions: list[Any], least: int, most: int) -> Iterator[int]:
    """Sizes to try."""
    if conditions:
        yield from (*range(least, min(most, _SMALL) + 1), most)
    for number in {abs(int(n)) for c in conditions for n in c.atoms(sympy.Integer)}:
        yield from (number - 1, number, number + 1)


def _border(holds: Any, good: int, bad: int) -> int:
    """The last size for which the conditions hold, on the way from one to one for which they do not."""
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def _dim(asked: Any, least: int, most: int) -> Any:
    return Dim(asked.__name__, min=least, max=most)
