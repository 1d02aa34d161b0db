"""Factors: which weights of a program have a low rank, and the small matrices each is the product of."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsify.ir.program import Program
from sparsify.ir.tensor_names import factors
from sparsify.ir.views.linear import Linear, out_in
from sparsify.tensors.lowrank import best_rank, matrix_rank, shared_spaces

Chain = dict[str, Tensor]


def chains(program: Program, views: Sequence[Linear], *, shared: bool) -> dict[str, Chain]:
    """The factors of every weight that they multiply by faster, by its path; each `[out, in]`, first first.

    `A [rank, in]` and `B [out, rank]`. With `shared` the weights of one stack, in the plan, that have their
    rows and columns in common read the same A and B, with a core `[rank, rank]` of their own between them.
    """
    weights = {v.weight: out_in(v, program.tensor(v.weight).detach()) for v in views}
    ranks = {path: matrix_rank(weight, weight.dtype) for path, weight in weights.items()}
    low = {path: rank for path, rank in ranks.items() if _pays(weights[path], rank)}
    found: dict[str, Chain] = {}
    for group in program.plan.get("stacks", []) if shared else []:
        for paths in _alike(weights, [p for p in group if p in low and p not in found]):
            found |= _together(weights, low, paths)
    for path, rank in low.items():
        if path not in found:
            found[path] = _apart(path, weights[path], rank)
    return found


def _pays(weight: Tensor, rank: int, core: int = 0) -> bool:
    """Whether factors take fewer multiply-adds than the weight, `core` those between them."""
    outputs, inputs = weight.shape
    return rank > 0 and rank * (outputs + inputs) + core < outputs * inputs


def _alike(weights: Mapping[str, Tensor], paths: Sequence[str]) -> list[list[str]]:
    """Weights of one shape, two of them at least."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for path in paths:
        by_shape.setdefault(tuple(weights[path].shape), []).append(path)
    return [found for found in by_shape.values() if len(found) > 1]


def _together(
    weights: Mapping[str, Tensor], ranks: Mapping[str, int], paths: Sequence[str]
) -> dict[str, Chain]:
    """The chains of weights that share rows and columns at the rank of the largest; empty if they do not."""
    matrices, rank = [weights[path] for path in paths], max(ranks[path] for path in paths)
    joint = [matrix_rank(torch.cat(matrices, dim), matrices[0].dtype) for dim in (0, 1)]
    if max(joint) > rank or not _pays(matrices[0], rank, rank * rank):
        return {}
    left, right = shared_spaces(matrices, rank)
    first, _, last = factors(paths[0])
    return {
        path: {
            first: _stored(right.T, matrix),
            factors(path)[1]: _stored(left.T @ matrix.double() @ right, matrix),
            last: _stored(left, matrix),
        }
        for path, matrix in zip(paths, matrices, strict=True)
    }


def _apart(path: str, weight: Tensor, rank: int) -> Chain:
    a, b = best_rank(weight.double(), rank)
    first, _, last = factors(path)
    return {first: _stored(a, weight), last: _stored(b, weight)}


def _stored(factor: Tensor, weight: Tensor) -> Tensor:
    """A factor in the type of a weight, its rows one after the other as on disk."""
    return factor.to(weight.dtype).contiguous()
