"""choose-clusters: experts that a router scores alike are put in one order and merged (UNCURL).

    s_ij = (cos(c_i, c_j) + 1) / 2                            c [tokens, E] centred logits of the router
    clusters = spectral(s), G of them
    P_e = argmax_P <R_r, P R_e>                               R_e [m, n] all that belongs to each of m neurons
    W_e <- sum_{j in g} f_j P_j W_j / sum_{j in g} f_j        for every expert e of a cluster g, f its hits

r is the reference of a cluster, its most used expert. `<R_r, P R_e>` sums gate, up and down, whatever
an expert has. Every expert of a cluster ends up the same, so that merge-experts can store it once: the router
keeps its rows, and the weights of two experts of one cluster add up (exact sharing). With `gates=sliced`
masks leave the reference of each cluster alone, for prune-experts: the router loses rows, its softmax moves,
and the function is another one even where experts were the same.
Source: UNCURL (2409.01483) for the steps. Ours: the reference, and `scope=global`, one number of clusters
for all layers, shared out so that `sum_e f_e (1 - s_er)`, summed over the layers, is least.
The text of the graph stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.expert_mask import expert_masks
from sparsify.ir.program import Program
from sparsify.ir.views.probe import probes
from sparsify.ir.views.router import probe_of
from sparsify.ir.views.targets import targeted
from sparsify.select.clusters import Clusters, choose_clusters, counts_left, merge
from sparsify.select.mixture import Mixture, mixtures
from sparsify.tensors.clusters import spectral


@dataclass(frozen=True)
class ChooseClusters(Pass):
    """Merge the experts of every targeted router into `experts` clusters, or leave out a share of them.

    `sparsity` is the share of the experts of each router that goes. `scope=global` takes as many in all, more
    where that costs less. Statistics come from probes of the routers; each cluster's `reference` is its most
    `used` expert or the `first` one.
    """

    name: ClassVar[str] = "choose-clusters"
    moves: ClassVar[Moves] = FUNCTION
    experts: int | None = None
    sparsity: float | None = None
    scope: Literal["layer", "global"] = "layer"
    gates: Literal["shared", "sliced"] = "shared"
    reference: Literal["used", "first"] = "used"
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs statistics, and masks to slice; what means of weights would not be that of must be folded."""
        sliced = self.gates == "sliced"
        return effect(
            needs=["probe", "stats", *(["mask.experts"] if sliced else [])],
            sets=[] if sliced else ["clusters"],
            bars=[
                *("mask.channels", "mask.weights", "lora", "row-scales", "quantizers"),
                *("merged-experts", "omission"),
            ],
        )

    def check(self, program: Program) -> None:
        """There must be experts whose neurons can be told, and as many as are to be left."""
        if (self.experts is None) == (self.sparsity is None):
            raise OptionError("give experts=8, the clusters of each router, or sparsity=0.5")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError(f"sparsity={self.sparsity} must be at least 0 and below 1")
        spectral()  # which may be missing
        _refuse_statistics(program)
        found = self._mixtures(program)
        apart = [mixture.router.weight for mixture in found if mixture.apart]
        if apart and self.gates == "sliced":
            raise OptionError(
                f"the experts of @{apart[0]} are linears of their own, and masks leave none of them out; "
                "use gates=shared"
            )
        counts_left(found, self.experts, self.sparsity, self._least(found))

    def check_featured(self, program: Program, featured: Mapping[str, frozenset[str]]) -> None:
        """Every router must have a probe by then."""
        watched = featured.get("probe.routers", frozenset())
        for mixture in self._mixtures(program):
            router = mixture.router
            if router.weight not in watched and probe_of(router.node) is None:
                raise OptionError(
                    f"the router @{router.weight} has no probe; use insert-probes{{of=routers}}"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose clusters, merge their experts; returns how many routers there are."""
        _refuse_statistics(program)
        found = self._mixtures(program)
        least = self._least(found)
        made = choose_clusters(
            program,
            found,
            counts_left(found, self.experts, self.sparsity, least),
            least=max(least),
            together=self.scope == "global",
            first=self.reference == "first",
            seed=context.seed,
        )
        context.progress.start(self.name, len(made))
        for clusters in made:
            merge(program, clusters)
            context.progress.advance()
        if self.gates == "sliced":
            self._mask(program, made)
        planned = program.plan.setdefault("clusters", {})
        planned.update({one.mixture.router.weight: one.numbers for one in made})
        left = sum(len(one.cores) for one in made)
        context.notes.append(f"{left} of {sum(mixture.size for mixture in found)} experts are left")
        return len(made)

    def _mixtures(self, program: Program) -> list[Mixture]:
        return mixtures(program, targeted(program, self.targets, self.ignore))

    def _least(self, found: Sequence[Mixture]) -> list[int]:
        """Without its other rows a router chooses among the clusters alone."""
        return [mixture.router.k if self.gates == "sliced" else 1 for mixture in found]

    @torch.no_grad()
    def _mask(self, program: Program, made: Sequence[Clusters]) -> None:
        """Keep the reference of each cluster."""
        masks = {mask.weight: program.tensor(mask.path) for mask in expert_masks(program)}
        for one in made:
            weight = one.mixture.router.weight
            if weight not in masks:
                raise OptionError(f"the router @{weight} has no mask; widen insert-masks")
            kept = torch.zeros_like(masks[weight])
            kept[one.cores] = True
            masks[weight].copy_(kept)


def _refuse_statistics(program: Program) -> None:
    """Raise OptionError for probes that know what each expert has seen, which nobody has of a merged one."""
    if any(probe.of_experts for probe in probes(program)):
        raise OptionError(
            "what probes saw of each expert says nothing of merged ones; watch the routers alone, with "
            "insert-probes{of=routers}, and the experts afterwards"
        )
