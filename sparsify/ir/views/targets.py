"""Targets before their time: globs for weights that an earlier pass of the pipeline will have added."""

from collections.abc import Sequence

from sparsify.ir.program import Program
from sparsify.ir.tensor_names import SUFFIXES
from sparsify.ir.views.globs import matches
from sparsify.ir.views.linear import Linear, linears, targeted


def expected(program: Program, targets: Sequence[str], ignore: Sequence[str]) -> list[Linear]:
    """The linears that targets match so far; as `targeted`, whose errors it raises.

    A glob that matches no linear is let through when it would match what passes add to one: it is for
    weights that come, and `targeted` refuses it later if they have not.
    """
    paths = {view.weight for view in linears(program)}
    coming = {path + suffix for path in paths for suffix in SUFFIXES}

    def is_late(glob: str) -> bool:
        now = any(matches(path, glob) for path in paths)
        return not now and any(matches(path, glob) for path in coming)

    return targeted(
        program,
        [glob for glob in targets if not is_late(glob)],
        [glob for glob in ignore if not is_late(glob)],
    )
