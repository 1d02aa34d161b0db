"""Masks that are chosen anew while weights are trained, as the options of a training say it."""

from collections.abc import Sequence
from functools import partial

from sparsify.errors import OptionError
from sparsify.ir.features.weight_mask import masked_linears
from sparsify.ir.program import Program
from sparsify.ir.views.convolution import convolutions
from sparsify.ir.views.targets import targeted
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


def check_reach(
    program: Program, rule: AdamS, kinds: Sequence[str], lr: float, rates: Sequence[float]
) -> None:
    """Raise OptionError where masked weights could not come down to zero in steps of these rates."""
    reach = sum(rate * step / len(rates) for step, rate in enumerate(rates))
    # Before the masks are there: the weights that they go to as a rule.
    views = masked_linears(program) or targeted(program, ("*",), (), experts=True)
    views = (views if "weights" in kinds else []) + (
        convolutions(program) if "convolutions" in kinds else []
    )
    masked = [program.tensor(view.weight) for view in views]
    size = sum(weight.numel() for weight in masked)
    mean = sum(float(weight.detach().abs().sum()) for weight in masked) / max(1, size)
    if reach < rule.reach * mean:
        raise OptionError(
            f"adams can move a weight by {reach:.3g} in {len(rates)} steps at lr={lr:g}, but "
            f"weights are {mean:.3g} on average and should be reachable {rule.reach:g} times; "
            "take more steps, a larger lr, or a smaller reach"
        )
