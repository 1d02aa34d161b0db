"""Channels and heads whose masks move: ranked over all places and kinds by the weights they hold."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.program import Program
from sparsify.ir.run.straight_groups import straight_groups
from sparsify.select.groups import Amount, of_one_axis, ranked, sites, unit_cost
from sparsify.select.importance import Criterion, Evidence, importance, weight_norm


class MovingGroups:
    """The masks of channels and heads; `choose-masks{scope=global}` ranks by magnitude as this does.

    A sparsity is a fraction of the parameters of all of them: the units that matter least go while they hold
    no more. Of each place one stays, heads go with their whole KV group.
    """

    one_threshold = False

    def __init__(self, program: Program, kinds: Sequence[str]) -> None:
        self.program, self.kinds = program, tuple(kinds)
        analysis, present = analyse(program), group_masks(program)
        self.sites = [site for kind in kinds for site in sites(analysis, present, kind)]
        self.costs = [unit_cost(program, site, "groups") for site in self.sites]

    @property
    def masks(self) -> Mapping[str, str]:
        """Each mask, by its own path."""
        return {site.mask.path: site.mask.path for site in self.sites}

    @torch.no_grad()
    def sizes(self) -> dict[str, Tensor]:
        """The sum of |W| over the weights of each channel or head."""
        return {site.mask.path: weight_norm(self.program, site.of) for site in self.sites}

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """`magnitude`; of several kinds in units of each place's spread."""
        by = Criterion("magnitude", "standard" if len(self.kinds) > 1 else "none")
        scored = [importance(self.program, site, by, Evidence()) for site in self.sites]
        return dict(zip(self.masks, of_one_axis(scored, self.sites), strict=True))

    def keep(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Keep-masks `[size]` of the units that stay."""
        amount = Amount(sparsity=sparsity, scope="global")
        kept = ranked(list(scores.values()), self.sites, amount, self.costs)
        return dict(zip(scores, kept, strict=True))

    def straight(self) -> AbstractContextManager[None]:
        """The gradient at the masked weights, for all weights that take the units in."""
        return straight_groups(self.program, [site.mask for site in self.sites])
