"""Mixtures, read off the axes: a router, the tensors of its experts, and the neurons inside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.mixture import expert_tensors
from sparsify.ir.axes.shrink.choice import place
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.select.kinds.experts import targeted_routers


@dataclass(frozen=True)
class Mixture:
    """A router and its experts.

    `tensors` holds the dimension of the experts in each of their tensors, by path; `neurons` where neurons
    stand in one expert, by path: the dimension, and the entries `[neurons, entries of each]` of it.
    """

    router: Router
    tensors: dict[str, int]
    neurons: dict[str, tuple[int, Tensor]]

    @property
    def size(self) -> int:
        """The number of experts."""
        return self.router.axis.root().size

    def expert(self, program: Program, path: str, number: int) -> Tensor:
        """What a tensor holds of one expert: a view of it."""
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
    routers = targeted_routers(program, views)
    for router in routers:
        if sum(other.axis.root() is router.axis.root() for other in analysis.routers) > 1:
            raise OptionError(f"the experts of @{router.weight} have a second router; leave them")
    return [_mixture(analysis, router) for router in routers]


def _mixture(analysis: Analysis, router: Router) -> Mixture:
    tensors = expert_tensors(analysis, router)
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
        # The dimension in what is left once one expert is taken out.
        dim = member.dim - (member.dim > tensors[member.path])
        neurons[member.path] = dim, order.reshape(inner.size, -1)
    return Mixture(router, tensors, neurons)
