"""Where the code of a model makes a number of a size that varies, which fixes it in the program."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.fx.experimental.sym_node import SymNode

# Of torch, and of what stands between it and the model while that is exported.
_OWN = {Path(torch.__file__).parent, Path(__file__).parent}


@contextlib.contextmanager
def noting_fixed(found: list[str]) -> Iterator[None]:
    """Note, while it lasts, each line that asks a size that varies for its number: a loop over it, say."""
    original = SymNode.guard_int

    def guard_int(node: SymNode, file: str, line: int) -> int:
        if isinstance(node.maybe_as_int(), int):
            return original(node, file, line)
        found.extend(_lines())
        return original(node, file, line)

    SymNode.guard_int = guard_int  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SymNode.guard_int = original  # type: ignore[method-assign]


def _lines() -> Iterator[str]:
    """The innermost line of the model's code, in words."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_file() and not _OWN.intersection(path.parents):
            yield f"line {frame.lineno} of {path.name}, in {frame.name}: '{frame.line}'"
            return
