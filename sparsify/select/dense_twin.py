"""The weights of the dense twin, by those of the program that came from it."""

from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, effective_weight, linears, out_in


class Dense:
    """Looks weights up in the dense twin of a program.

    Raises OptionError when the two cannot be compared entry by entry: channels were put in another
    order, or removed, since the twin was taken.
    """

    def __init__(self, program: Program, twin: Program) -> None:
        if any(program.plan.get(key) != twin.plan.get(key) for key in ("reordered", "axes")):
            raise OptionError(
                "channels were moved or removed since the model was dense; do that in a run of its own, "
                "so that this one starts from what it leaves"
            )
        self._twin = twin
        self._views = {view.weight: view for view in linears(twin)}

    def weight(self, view: Linear) -> Tensor:
        """What the weight of a linear was, `[out, in]`, as the twin computes it."""
        if view.weight not in self._views:
            raise OptionError(f"the dense model has no linear with the weight @{view.weight}")
        theirs = self._views[view.weight]
        return out_in(theirs, effective_weight(self._twin, theirs))
