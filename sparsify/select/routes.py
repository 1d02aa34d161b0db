"""Statistics of a router: how often each expert is chosen, and which experts it scores alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.ir.axes.analysis import Router
from sparsify.ir.axes.separate_routers import SeparateRouter
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import route_probe
from sparsify.ir.views.probe import Probe
from sparsify.ir.views.router import probe_of
from sparsify.tensors.clusters import centred


@dataclass(frozen=True)
class Routes:
    """What is known of a router: `tokens` it saw, `hits [experts]` of their choices, `gram` of its logits.

    `gram = sum_t c_t c_t^T [experts, experts]`, c_t the logits of a token less their mean.
    """

    tokens: int
    hits: Tensor
    gram: Tensor


def empty_routes(path: str, experts: int) -> dict[str, Tensor]:
    """Fresh buffers of a router's probe, by path, in the order in which its node reads them."""
    return {
        route_probe(path, "count"): torch.zeros((), dtype=torch.int64),
        route_probe(path, "hits"): torch.zeros(experts, dtype=torch.int64),
        route_probe(path, "gram"): torch.zeros(experts, experts),
    }


def add_routes(program: Program, probe: Probe, numbers: Tensor, scores: Tensor) -> None:
    """Add a batch to a router's statistics: `numbers [tokens, k]` it chose by `scores [tokens, experts]`."""
    count, hits, gram = (program.tensor(path) for path in probe.statistics)
    count.add_(len(numbers))
    hits.add_(torch.bincount(numbers.flatten(), minlength=len(hits)))
    rows = centred(scores.to(gram.dtype))
    gram.addmm_(rows.T, rows)


def routes_of(program: Program, router: Router | SeparateRouter) -> Routes:
    """The statistics of a router; SparsifyError where it has no probe, or one that saw nothing."""
    probe = probe_of(router.node)
    if probe is None:
        raise SparsifyError(
            f"the router @{router.weight} has no probe; put insert-probes{{of=routers}} before"
        )
    count, hits, gram = (program.tensor(path) for path in probe.statistics)
    if int(count) == 0:
        raise SparsifyError(f"the probe of @{router.weight} saw no token; calibrate first")
    return Routes(int(count), hits, gram)
