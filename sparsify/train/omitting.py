"""Neurons left out of each training step (SAT): chosen on the way, shared by all that belongs to a step."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.errors import OptionError
from sparsify.ir.features.omission import Chooser, choosing, omissions
from sparsify.ir.program import Program
from sparsify.tensors.omission import (
    Runs,
    choose,
    gumbel,
    input_statistic,
    kept_count,
    neuron_sums,
    row_scores,
)

# Coverage counts the neurons that took part in one of so many last steps.
WINDOW = 100
_NEVER = -(1 << 40)


class Omitting:
    """The choices of one training run.

    `begin` starts an optimiser step: the first forward after it chooses the neurons of every site from
    its block's input; what follows in that step (other micro-batches, recomputed activations) uses the
    same. Data-parallel ranks choose from statistics of all their inputs. Choices depend on the weights,
    the data, the seed and the step alone. In evaluation mode nothing is omitted.
    """

    def __init__(self, program: Program, *, seed: int = 0) -> None:
        found = omissions(program)
        if not found:
            raise OptionError("the program omits nothing; put insert-omission before")
        self.program, self.seed = program, seed
        self.rate, self.step = 0.0, 0
        self.sites = {
            item.path: _Choice(self, number, item.path) for number, item in enumerate(found)
        }
        self._nodes: dict[fx.Node, Chooser] = {item.node: self.sites[item.path] for item in found}

    def training(self) -> AbstractContextManager[None]:
        """The graph as it is to be trained, inside the block."""
        return choosing(self.program, self._nodes)

    def begin(self, step: int, rate: float) -> None:
        """Start step number `step` with an omission rate from 0 to below 1."""
        if not 0 <= rate < 1:
            raise OptionError(f"an omission rate of {rate:g} is not in [0, 1)")
        self.step, self.rate = step, rate
        for site in self.sites.values():
            site.kept = None

    def kept(self) -> dict[str, Tensor]:
        """The neurons that this step keeps, by site; all where none was chosen."""
        return {path: site.current() for path, site in self.sites.items()}

    def figures(self) -> dict[str, float]:
        """Shares of this step, means over the sites; ask once a step, after its forward.

        `omission`: the share of neurons left out; `coverage`: that took part in one of the last 100
        steps; `jaccard`: `|A and B| / |A or B|` of the kept sets of this step and the one before.
        """
        rows = [site.figures(self.step) for site in self.sites.values()]
        names = sorted(set.intersection(*(set(row) for row in rows)))
        return {name: sum(row[name] for row in rows) / len(rows) for name in names}

    def state_dict(self) -> dict[str, Tensor]:
        """The last step that kept each neuron, by site."""
        return {path: site.seen for path, site in self.sites.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take `state_dict` over."""
        for path, site in self.sites.items():
            site.seen.copy_(state[path])


class _Choice:
    """What stands in the graph in place of `kept_neurons` while it is trained."""

    # Generated code calls it by these.
    __name__ = "chosen_neurons"
    __module__ = __name__

    def __init__(self, run: Omitting, number: int, path: str) -> None:
        self.run, self.number, self.path = run, number, path
        self.kept: Tensor | None = None
        self.seen = torch.full((self._every().numel(),), _NEVER, dtype=torch.long)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        every: Tensor,
        weights: Sequence[Tensor],
        layouts: Sequence[Runs],
        dims: Sequence[int],
        metric: str,
        select: str,
        groups: int,
        multiple: int,
    ) -> Tensor:
        """The kept neurons of this step; see `sparsify.ir.ops.kept_neurons.kept_neurons`."""
        if self.run.rate == 0 or not self.run.program.module.training:
            return every
        if self.kept is None:
            size = every.numel()
            statistic = _shared(input_statistic(x, metric))
            scores = torch.zeros(size, device=x.device)
            for weight, layout, dim in zip(weights, layouts, dims, strict=True):
                rows = row_scores(weight.t() if dim == 1 else weight, metric, statistic)
                scores += neuron_sums(rows, layout, size)
            noise = None
            if select == "sampling":
                noise = gumbel(size, (self.run.seed, self.run.step, self.number)).to(x.device)
            count = kept_count(size // groups, self.run.rate, multiple)
            self.kept = choose(scores, groups, count, noise)
        return self.kept

    def current(self) -> Tensor:
        return self._every() if self.kept is None else self.kept

    def figures(self, step: int) -> dict[str, float]:
        kept = self.current().cpu()
        before = self.seen == step - 1
        now = torch.zeros_like(before)
        now[kept] = True
        self.seen[kept] = step
        size = before.numel()
        result = {
            "omission": 1 - kept.numel() / size,
            "coverage": int((self.seen > step - WINDOW).sum()) / size,
        }
        if bool(before.any()):
            result["jaccard"] = int((now & before).sum()) / int((now | before).sum())
        return result

    def _every(self) -> Tensor:
        return self.run.program.tensor(self.path)


def _shared(statistic: Tensor | None) -> Tensor | None:
    """The mean over data-parallel ranks, so that all choose alike."""
    if statistic is not None:
        ranks.add_up(statistic)
        statistic /= ranks.count()
    return statistic
