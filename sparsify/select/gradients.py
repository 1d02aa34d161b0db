"""First-order sensitivities: derivatives of the task loss by weights and by group masks.

Ranks share the batches out, and each gets the sums of all.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.data.sequences import Data
from sparsify.data.shares import own_batches
from sparsify.ir.axes.shrink.choice import reduce
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.views.linear import effective_weight, out_in, products
from sparsify.select.groups import MaskedAxis, input_index
from sparsify.train.losses import TaskLoss


def weight_gradients(
    program: Program, data: Data, indices: Sequence[int], batch: int
) -> dict[str, Tensor]:
    """Mean gradient of the task loss by every linear's weight, in its stored layout, by path."""
    paths, count = _paths(program), 0
    total = _zeros(program, paths)
    for gradients in _each(program, paths, data, indices, batch):
        count += 1
        for path, value in gradients.items():
            total[path] += value
    ranks.add_up(*total.values())
    (count,) = map(int, ranks.totals(count))
    return {path: value / count for path, value in total.items()}


def gradient_moments(
    program: Program, data: Data, indices: Sequence[int], paths: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over samples of the gradient G of the task loss by each tensor, and of G^2, by path.

    One sample a backward: the square of a mean would be another thing.
    """
    first, second = _zeros(program, paths), _zeros(program, paths)
    for gradients in _each(program, paths, data, indices, 1):
        for path, value in gradients.items():
            first[path] += value
            second[path] += value.square()
    ranks.add_up(*first.values(), *second.values())
    count = len(indices)
    return {path: (first[path] / count, second[path] / count) for path in first}


def mask_derivatives(
    program: Program, chosen: Sequence[MaskedAxis], data: Data, indices: Sequence[int], batch: int
) -> dict[str, Tensor]:
    """Mean over batches of |dLoss / dmask|, `[size]` for each site by its mask's path.

    The mask multiplies the inputs of a linear, so `dLoss/dmask_g = sum W_ij dLoss/dW_ij` over all outputs i
    and the inputs j of group g: the weight's own gradient is enough.
    """
    views = {view.weight: view for view in products(program)}
    found = [views[site.mask.linear.weight] for site in chosen]
    fixed = [
        (site, view, effective_weight(program, view), input_index(site))
        for site, view in zip(chosen, found, strict=True)
    ]
    total = {
        site.mask.path: torch.zeros(site.of.size, device=weight.device)
        for site, _, weight, _ in fixed
    }
    count = 0
    for gradients in _each(program, _paths(program), data, indices, batch):
        count += 1
        for site, view, weight, index in fixed:
            columns = out_in(view, weight * gradients[view.weight]).float().flatten(0, -2).sum(0)
            total[site.mask.path] += reduce(index, columns, site.of.size).abs()
    ranks.add_up(*total.values())
    (count,) = map(int, ranks.totals(count))
    return {path: value / count for path, value in total.items()}


def _paths(program: Program) -> list[str]:
    return sorted({view.weight for view in products(program)})


def _zeros(program: Program, paths: Sequence[str]) -> dict[str, Tensor]:
    return {path: torch.zeros_like(program.tensor(path).detach()) for path in paths}


def _each(
    program: Program, paths: Sequence[str], data: Data, indices: Sequence[int], batch: int
) -> Iterator[dict[str, Tensor]]:
    weights = [program.tensor(path) for path in paths]
    flags = [weight.requires_grad for weight in weights]
    loss_of = TaskLoss(program)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for part in own_batches(data, indices, batch):
            with evaluating(program.module):
                loss = loss_of(program.module(**program.complete(part)), part)
            found = torch.autograd.grad(loss, weights)
            yield dict(zip(paths, found, strict=True))
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
