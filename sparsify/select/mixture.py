"""Mixtures, read off the axes: a router, the tensors of its experts, and the neurons inside them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.mixture import expert_tensors
from sparsify.ir.axes.separate_experts import separate_experts
from sparsify.ir.axes.separate_routers import SeparateRouter
from sparsify.ir.axes.shrink.choice import place
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.select.kinds.experts import mixing_routers


@dataclass(frozen=True)
class Mixture:
    """A router and its experts.

    `tensors` holds the dimension of the experts in each of their tensors, by path; `neurons` where neurons
    stand in one expert, by path: the dimension, and the entries `[neurons, entries of each]` of it.
    Experts that are linears of their own go by the paths of the first one, and `apart` holds the path of each
    expert's tensor by that of the first.
    """

    router: Router | SeparateRouter
    tensors: dict[str, int]
    neurons: dict[str, tuple[int, Tensor]]
    apart: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of experts."""
        return self.router.size

    def expert(self, program: Program, path: str, number: int) -> Tensor:
        """What a tensor holds of one expert: a view of it."""
        if self.apart:
            return program.tensor(self.apart[path][number]).detach()
        return program.tensor(path).detach().select(self.tensors[path], number)

    def rows(self, program: Program, number: int) -> Tensor:
        """All that belongs to each neuron of an expert, side by side, `[neurons, numbers]`."""
        found = []
        for path, (dim, entries) in self.neurons.items():
            part = self.expert(program, path, number).movedim(dim, 0)
            found.append(part[entries.to(part.device)].flatten(1))
        return torch.cat(found, 1)

    def reordered(self, path: str, value: Tensor, order: Tensor) -> Tensor:
        """A tensor of one expert with its neurons in another order, `order [neurons]` at each place."""
        if path not in self.neurons:
            return value
        dim, entries = self.neurons[path]
        index = torch.arange(value.shape[dim])
        index[entries] = entries[order.cpu()]
        return value.index_select(dim, index.to(value.device))


def mixtures(program: Program, views: Sequence[Linear]) -> list[Mixture]:
    """The mixtures whose router is among some linears; OptionError for one that cannot be read."""
    analysis = analyse(program)
    made = []
    for router in mixing_routers(program, views):
        if isinstance(router, SeparateRouter):
            made.append(_separate(program, analysis, router))
            continue
        if sum(other.axis.root() is router.axis.root() for other in analysis.routers) > 1:
            raise OptionError(f"the experts of @{router.weight} have a second router; leave them")
        tensors = expert_tensors(analysis, router)
        neurons = {}
        for path, (dim, entries) in _neurons(analysis, router, tensors).items():
            # The dimension in what is left once one expert is taken out.
            neurons[path] = dim - (dim > tensors[path]), entries
        made.append(Mixture(router, tensors, neurons))
    return made


def _separate(program: Program, analysis: Analysis, router: SeparateRouter) -> Mixture:
    experts = separate_experts(program, router)
    first = experts[0].paths
    # Experts are alike op by op, so that neurons of the first stand where those of the others do.
    neurons = _neurons(analysis, router, first)
    apart = dict(zip(first, zip(*(expert.paths for expert in experts), strict=True), strict=True))
    return Mixture(router, dict.fromkeys(first, 0), neurons, apart)


def _neurons(
    analysis: Analysis, router: Router | SeparateRouter, tensors: Collection[str]
) -> dict[str, tuple[int, Tensor]]:
    """Where neurons stand in the tensors of experts: the dimension, and the entries of each neuron."""
    found = [
        other
        for other in groups(analysis)
        if other.kind == "channels" and any(member.path in tensors for member in other.members)
    ]
    if len(found) != 1:
        raise OptionError(
            f"the experts of @{router.weight} have {len(found) or 'no'} axes of neurons that can be told, "
            "where one is needed to align them; use prune-experts"
        )
    inner = found[0]
    shared = next((m.path for m in inner.members if m.path not in tensors), None)
    if inner.pins or shared is not None:
        why = inner.pins[0] if inner.pins else f"@{shared} is one for all experts"
        raise OptionError(
            f"the neurons of the experts of @{router.weight} cannot be reordered one expert at a time: {why}"
        )
    neurons = {}
    for member in inner.members:
        index = place(member.axis, inner.leaf)
        order = index.argsort(stable=True)[int((index < 0).sum()) :]
        neurons[member.path] = member.dim, order.reshape(inner.size, -1)
    return neurons
