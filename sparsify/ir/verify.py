"""What must hold of every program; the message shows the lines around what is broken."""

from typing import Any

from torch import Tensor, fx

import sparsify.ir.features.catalogue  # noqa: F401 (registers the features that are told apart here)
from sparsify.errors import VerifyError, reason_of
from sparsify.ir.ops.allowed import allowed
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import (
    FACTORS,
    PACKED,
    blocks,
    feature_of,
    graph_features,
    packed,
    value_features,
)
from sparsify.ir.text import line_of, to_text
from sparsify.ir.types import infer
from sparsify.ir.views.packed import block_weights, packed_linears

_KINDS = {"placeholder", "get_attr", "call_function", "output"}


def verify(program: Program) -> None:
    """Check form, types, tensors and features of a program.

    Raises VerifyError: malformed graph, op out of the allowed set, a stored type that running the op
    on fake tensors does not give, a parameter that no node reads, or features the graph does not show.
    """
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the graph is malformed: {reason_of(error)}") from error
    for node in program.graph.nodes:
        if node.op not in _KINDS or (node.op == "call_function" and not allowed(node.target)):
            raise _broken(program, node, f"{node.op} '{node.target}' is not an op of a program")
    _check_types(program)
    _check_tensors(program)
    _check_features(program)


def _check_types(program: Program) -> None:
    stored = {node: node.meta.get("val") for node in program.graph.nodes}
    try:
        fresh = infer(program)
    except Exception as error:
        raise VerifyError(
            f"a node cannot be typed: {reason_of(error)}\n{to_text(program)[-600:]}"
        ) from error
    for node, value in fresh.items():
        if node.op != "output" and _shape(stored[node]) != _shape(value):
            raise _broken(
                program,
                node,
                f"its type says {_shape(stored[node])}, running it gives {_shape(value)}",
            )
        node.meta["val"] = value


def _check_tensors(program: Program) -> None:
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for path, _ in program.tensors():
        if path not in read:
            raise VerifyError(
                f"tensor @{path} is not read by the graph: the pass that orphaned it must delete it"
            )


def _check_features(program: Program) -> None:
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    shown = {str(feature_of(path, read)) for path in read} - {"None"}
    shown |= {PACKED for _ in (*packed_linears(program), *block_weights(program))}
    for chain in program.plan.get("factors", {}).values():
        forms = [{path, packed(path), blocks(path)[0]} for path in chain]
        shown |= {FACTORS} if all(read & form for form in forms) else set()
    known = graph_features()
    checked = program.features & known
    if shown != checked:
        raise VerifyError(
            f"the program claims the features {sorted(checked)}, its graph shows {sorted(shown)}"
        )
    unknown = program.features - known - value_features()
    if unknown:
        raise VerifyError(f"no rule knows the features {sorted(unknown)}")


def _shape(value: Any) -> Any:
    """A comparable form of a type; symbolic sizes by their expression, whatever symbols are called."""
    if isinstance(value, Tensor):
        sizes = [s if isinstance(s, int) else f"<{s.node.expr}>" for s in value.shape]
        return str(value.dtype).removeprefix("torch."), sizes
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return type(value).__name__


def _broken(program: Program, node: fx.Node, what: str) -> VerifyError:
    """The error for a node, with the three lines before and after it."""
    lines = to_text(program).splitlines()
    at = line_of(program, node)
    shown = [
        f"{'>' if i == at else ' '} {line}" for i, line in enumerate(lines) if at - 3 <= i <= at + 3
    ]
    return VerifyError(f"node {node.name}: {what}\n" + "\n".join(shown))
