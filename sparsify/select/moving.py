"""Masks that are chosen anew while weights are trained, as the options of a training say it."""

from functools import partial

from sparsify.ir.program import Program
from sparsify.select.moving_groups import MovingGroups
from sparsify.select.statistics import by_wanda
from sparsify.train.every import Every
from sparsify.train.movable import Movable, MovingWeights
from sparsify.train.moving_masks import Refresh
from sparsify.train.options import AdamS, ArsSte, SrSte
from sparsify.train.settings import Sparse


def sparse_of(every: Every, decay: SrSte | ArsSte | AdamS | None, steps: int) -> Sparse:
    """How masks move, and masked weights are pulled to zero, in a run of so many steps."""
    refresh = Refresh(
        every.steps,
        every.nm,
        sparsity=every.sparsity or 0.0,
        cubic=every.schedule == "cubic",
        end=every.end(steps),
        feedback=every.feedback,
        find=partial(_movable, every),
    )
    return Sparse(refresh, decay, dense_forward=isinstance(decay, AdamS))


def _movable(every: Every, program: Program) -> Movable:
    if every.groups:
        return MovingGroups(program, every.of)
    score = by_wanda(program) if every.score == "wanda" else None
    return MovingWeights(program, every.of, every.nm, score)
