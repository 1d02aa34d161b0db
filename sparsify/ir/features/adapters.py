"""Adapters: low-rank branches beside a linear that stay there, `y + linear(linear(x, A), B)`."""

from sparsify.ir.features.beside import Beside, branches_beside, carry_beside, drop_beside
from sparsify.ir.features.feature import Feature
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import adapter


def adapters(program: Program) -> list[Beside]:
    """Every linear with an adapter, once a weight."""
    return branches_beside(program, adapter)


FEATURES = (
    Feature(
        "adapters",
        adapter(""),
        adapters,
        drop_beside,
        lambda made, program: carry_beside(made, program, adapter),
    ),
)
