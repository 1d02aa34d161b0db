"""Nearest neighbours in a store of keys and values: what they say of a query, and how much that counts.

    s_j = q . K_j, or the cosine of both                        q [..., d], K [N, d]
    w   = softmax(s / tau) over the k rows of largest s, 0 elsewhere                         [..., N]
    r   = sum_j w_j V_j                                         V [N, C], or N classes       [..., C]
    log p = log((1 - c) softmax(logits) + c r)

A row as near as the k-th is one of them, so that neither the order of rows nor the last digit of a product
decides: nearer than 1e-5 of the largest of the k counts as equal.
"""

import torch
from torch import Tensor

_EQUAL = 1e-5
_HALVINGS = 60


def similarities(queries: Tensor, keys: Tensor, *, cosine: bool) -> Tensor:
    """`s [..., N]` of queries `[..., d]` and keys `[N, d]`, which have length 1 for a cosine."""
    if cosine:
        queries = torch.nn.functional.normalize(queries, dim=-1)
    return queries @ keys.t()


def neighbour_weights(s: Tensor, temperature: Tensor, k: int) -> Tensor:
    """`w [..., N]` from similarities `s [..., N]`; each row sums to 1."""
    best = torch.topk(s, k, dim=-1).values
    slack = _EQUAL * best.abs().amax(-1, keepdim=True)
    near = s >= best[..., -1:] - slack
    scaled = (s - best[..., :1]) / temperature
    return torch.softmax(scaled.masked_fill(~near, float("-inf")), dim=-1)


def retrieved(weights: Tensor, values: Tensor, classes: int) -> Tensor:
    """`r [..., classes]` of weights `[..., N]`; values are `[N, classes]`, or the class of each row `[N]`."""
    if values.dim() == 2:
        return weights @ values
    empty = weights.new_zeros(*weights.shape[:-1], classes)
    return empty.scatter_add(-1, values.expand(weights.shape), weights)


def mixed(logits: Tensor, found: Tensor, share: Tensor) -> Tensor:
    """`log p [..., C]`, the share c `[]` of what was `found [..., C]`; the very logits where c is 0.

    It stays finite where p is 0: there the model counts for the smallest normal number, and not for nothing.
    """
    least = torch.finfo(logits.dtype).tiny
    own = torch.log_softmax(logits, dim=-1)
    both = ((1 - share) * own.exp() + share * found).clamp_min(least).log()
    alone = own + (1 - share).clamp_min(least).log()
    return torch.where(share > 0, torch.where(share * found > 0, both, alone), logits)


def best_share(
    model: Tensor, store: Tensor, target: Tensor, share: float | None = None
) -> tuple[float, float]:
    """The share c in [0, 1] of least cross-entropy, or the one given, and its cross-entropy in nats a row.

    Probabilities `[rows, m]` of the model and the store for m classes that a row may turn out to have, by
    the probabilities `target [rows, m]`. The cross-entropy is convex in c: its slope says where to go on.
    """
    model, store, target = (value.double() for value in (model, store, target))
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS if share is None else 0):
        c = (low + high) / 2
        gain = target * (store - model) / _at(model, store, c)
        low, high = (c, high) if float(gain.sum()) > 0 else (low, c)
    # The ends are reached in the limit alone; of equals the least.
    tried = (0.0, (low + high) / 2, 1.0) if share is None else (share,)
    found = min(tried, key=lambda c: _loss(model, store, target, c))
    return found, _loss(model, store, target, found)


def _at(model: Tensor, store: Tensor, c: float) -> Tensor:
    return ((1 - c) * model + c * store).clamp_min(torch.finfo(torch.float64).tiny)


def _loss(model: Tensor, store: Tensor, target: Tensor, c: float) -> float:
    return float(-(target * _at(model, store, c).log()).sum() / len(target))
