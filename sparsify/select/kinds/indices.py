"""Indices of one axis ranked by all that lives in it: for experts and for the residual width."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.axes.groups import Group
from sparsify.ir.program import Program
from sparsify.ir.views.linear import product_at
from sparsify.ir.views.probe import probe_behind
from sparsify.select.gradients import gradient_moments
from sparsify.select.groups import Amount, keep_some, matrices
from sparsify.select.importance import Criterion, Evidence, sensitivities, weight_norm
from sparsify.select.statistics import statistics_of
from sparsify.tensors.masks import keep_top


def choose_indices(
    program: Program, found: Mapping[str, Group], by: Criterion, amount: Amount, kind: str
) -> int:
    """Set the masks at these paths, the same fraction of each group; returns how many."""
    scores = _scores(program, list(found.values()), by)
    return keep_indices(program, found, scores, amount, kind)


def keep_indices(
    program: Program,
    found: Mapping[str, Group],
    scores: Sequence[Tensor],
    amount: Amount,
    kind: str,
) -> int:
    """Set the masks at these paths by scores `[size]`, the same fraction of each; returns how many."""
    for (path, group), score in zip(found.items(), scores, strict=True):
        if kind in amount.sizes:
            kept = keep_top(score, amount.sizes[kind])
        else:
            kept = keep_some(score, amount.sparsity, amount.step(kind), group.least)
        with torch.no_grad():
            program.tensor(path).copy_(kept)
    return len(found)


def _scores(program: Program, found: Sequence[Group], by: Criterion) -> list[Tensor]:
    """Importance `[size]` of every index of each group; see `sparsify.select.importance`."""
    if by.name == "activation":
        return [_levels(program, group) for group in found]
    if by.name == "magnitude":
        return [weight_norm(program, group) for group in found]
    assert by.data is not None
    paths = sorted({path for group in found for path, _ in matrices(program, group)})
    moments = gradient_moments(program, by.data, by.indices, paths)
    return [sensitivities(program, group, by.name, Evidence(moments=moments)) for group in found]


def _levels(program: Program, group: Group) -> Tensor:
    """What probes saw of a width: the sum over the inputs that linears read, each once.

    Source: Minitron (2407.14679), section 2.2, the embedding channels after every norm.
    """
    probes: dict[fx.Node, Tensor] = {}
    for consumer in group.consumers:
        probe, view = probe_behind(consumer.x), product_at(program, consumer.node)
        # What experts read is the value of a norm that their router reads whole.
        if probe is not None and view is not None and not probe.of_experts:
            found = statistics_of(program, view)
            assert found.level is not None  # a probe always has it
            probes[probe.node] = found.level
    if not probes:
        raise OptionError("no linear that reads the hidden size has a probe; insert-probes first")
    return torch.stack(list(probes.values())).sum(0)
