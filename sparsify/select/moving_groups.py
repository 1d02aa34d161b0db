"""Channels and heads whose masks move: ranked over all places and kinds by the weights they hold."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
        self._sites = {site.mask.path: site for site in self.sites}
        self.costs = [unit_cost(program, site, "groups") for site in self.sites]

    @property
    def masks(self) -> Mapping[str, str]:
        """Each mask, by its own path."""
        return dict(zip(self._sites, self._sites, strict=True))

    @torch.no_grad()
    def size(self, path: str) -> Tensor:
        """The sum of |W| over the weights of each channel or head."""
        return weight_norm(self.program, self._sites[path].of)

    @torch.no_grad()
    def score(self, path: str) -> Tensor:
        """`magnitude`; of several kinds in units of each place's spread."""
        by = Criterion("magnitude", "standard" if len(self.kinds) > 1 else "none")
        return importance(self.program, self._sites[path], by, Evidence())

    def share(self, masks: Mapping[str, Tensor]) -> float:
        """The fraction of the parameters of all channels and heads."""
        costs = [cost / site.per_group for site, cost in zip(self.sites, self.costs, strict=True)]
        units = [masks[site.mask.path] for site in self.sites]
        kept = sum(cost * int(mask.sum()) for cost, mask in zip(costs, units, strict=True))
        return 1 - kept / sum(cost * mask.numel() for cost, mask in zip(costs, units, strict=True))

    def keep(self, score: Callable[[str], Tensor], sparsity: float) -> Iterable[tuple[str, Tensor]]:
        """Keep-masks `[size]` of the units that stay; those that share an axis go together."""
        scored = of_one_axis([score(path) for path in self._sites], self.sites)
        amount = Amount(sparsity=sparsity, scope="global")
        return zip(self._sites, ranked(scored, self.sites, amount, self.costs), strict=True)

    def straight(self) -> AbstractContextManager[None]:
        """The gradient at the masked weights, for all weights that take the units in."""
        return straight_groups(self.program, [site.mask for site in self.sites])
