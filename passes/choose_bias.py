"""choose-bias: set every added bias to what the masks take away, with the inputs at their mean.

    b_i = sum_j (1 - m_ij) W_ij mean(x_j)

`W [out, in], b [out]`; m is the product of the masks of single weights and of the channels or heads that
the linear takes in. The mean output of the linear on the calibration data is then that of the dense one.
Choosing again, after other masks say, starts afresh. The text of the graph stays. Source: FLAP (2312.11983),
section 3.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.bias import AddedBias, added_biases
from sparsify.ir.features.group_mask import GroupMask, expand_group_mask, group_masks
from sparsify.ir.program import Program
from sparsify.ir.views.linear import branched_weight, out_in
from sparsify.select.statistics import statistics_of
from sparsify.tensors.importance import mean_bias


@dataclass(frozen=True)
class ChooseBias(Pass):
    """Choose every added bias from the masks and the calibrated means."""

    name: ClassVar[str] = "choose-bias"
    moves: ClassVar[Moves] = FUNCTION

    def effect(self) -> Effect:
        """Needs the biases, and the means of the inputs."""
        return effect(needs=["bias", "stats"], bars=["row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose every bias; returns how many."""
        found, masks = added_biases(program), group_masks(program)
        for item in found:
            view = item.linear
            mean = statistics_of(program, view).mean
            bias = mean_bias(_removed(program, item, masks), mean)
            with torch.no_grad():
                program.tensor(item.path).copy_(bias)
        return len(found)


def _removed(program: Program, item: AddedBias, masks: Sequence[GroupMask]) -> Tensor:
    """The weights `[out, in]` that masks take away, zero where they stay."""
    view = item.linear
    weight = out_in(view, branched_weight(program, view))
    kept = torch.ones_like(weight, dtype=torch.bool)
    if view.mask is not None:
        kept &= out_in(view, program.tensor(view.mask))
    for mask in masks:
        if mask.linear.weight == view.weight:
            kept &= expand_group_mask(program, mask, weight.shape[1])
    return weight * ~kept
