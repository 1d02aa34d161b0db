"""The record of a feature: what a pass may put into a program, and what others must know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.ir.program import Program


def _nowhere(program: Program) -> Sequence[Any]:
    return ()


@dataclass(frozen=True)
class Feature:
    """A feature: its name, its tensors, where it is, and how it is taken out or over.

    `suffixes` end the paths of its tensors, after the path of a tensor of the model: by them the verifier
    holds a program against its features. `find` gives its places in graph order, `drop` lets the program go
    on without one (tensors that nobody reads any more are swept). `carry(made, program)` puts it into the
    decode variant of a program; without it the variant and ONNX refuse the feature. A feature `in_values`
    is in the numbers of tensors, or in the plan, and not in the graph.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    find: Callable[[Program], Sequence[Any]] = _nowhere
    drop: Callable[[Program, Any], None] | None = None
    carry: Callable[[Program, Program], None] | None = None
    in_values: bool = False
