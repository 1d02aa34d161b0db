"""Cut axes out of a program, and write down what stayed."""

from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.program import Program


def cut(program: Program, keep: Keep) -> None:
    """Slice every tensor of the axes in `keep`; kept indices go to `program.plan["axes"]`.

    Raises OptionError for an axis that is unknown, pinned or emptied.
    """
    program.plan.setdefault("axes", []).append(shrink(program, keep))
