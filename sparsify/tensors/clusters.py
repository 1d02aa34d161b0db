"""clusters: experts of a mixture that are chosen alike, put in one order and merged (UNCURL).

Logits r [tokens, E] are what a router says of E experts. Only differences between the experts of one
token matter to a softmax, so they are centred by token first. Everything here is float64.

Source: UNCURL (2409.01483) for the steps: clusters of router logits, alignment, means weighted by use.
"""

import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sparsify.errors import SparsifyError

_RESTARTS = 10


def centred(logits: Tensor) -> Tensor:
    """`r - mean(r)` of each token [tokens, E]; experts that are left out (-inf) count as the mean."""
    there = logits.isfinite()
    kept = logits.where(there, 0)
    mean = kept.sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp_min(1)
    return (kept - mean).where(there, 0)


def similarity(gram: Tensor) -> Tensor:
    """`s_ij = (G_ij / sqrt(G_ii G_jj) + 1) / 2` [E, E], from the Gram matrix G of centred logits.

    In [0, 1], 1 on the diagonal; an expert without logits (G_ii = 0) is unlike every other, 1/2.
    """
    gram = gram.double().cpu()
    norms = gram.diagonal().clamp_min(0).sqrt()
    scaled = norms.where(norms > 0, 1)
    cosine = (gram / scaled / scaled[:, None]).clamp(-1, 1)
    found = (cosine + cosine.T) / 4 + 0.5
    return found.fill_diagonal_(1)


def cluster(similar: Tensor, count: int, seed: int) -> list[int]:
    """The cluster of each expert, numbered in the order of their first experts.

    Spectral clustering of `similar [E, E]`: the leading eigenvectors of D^-1/2 S D^-1/2, then k-means with
    ten restarts, by scikit-learn. There are exactly `count` clusters: where k-means finds fewer, as it does
    among experts that are all alike, the expert least like its cluster gets one of its own, again and again.
    """
    size = len(similar)
    if not 1 <= count <= size:
        raise SparsifyError(f"{size} experts make no {count} clusters")
    if count in (1, size):
        return [0] * size if count == 1 else list(range(size))
    found = spectral().SpectralClustering(
        n_clusters=count,
        affinity="precomputed",
        assign_labels="kmeans",
        n_init=_RESTARTS,
        random_state=seed,
        # Few experts: with this name the eigenvectors come from a dense solver, and are exact.
        eigen_solver="lobpcg" if size < 5 * count + 1 else "arpack",
    )
    with warnings.catch_warnings(action="ignore"):
        labels = found.fit(similar.numpy()).labels_.tolist()
    while len(set(labels)) < count:
        labels[_strangest(similar, labels)] = max(labels) + 1
    return renumbered(labels)


def renumbered(labels: Sequence[int]) -> list[int]:
    """Clusters numbered in the order of their first members."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]


def members(clusters: Sequence[int]) -> list[list[int]]:
    """The experts of each cluster, in order."""
    found: list[list[int]] = [[] for _ in range(max(clusters) + 1)]
    for expert, number in enumerate(clusters):
        found[number].append(expert)
    return found


def cores(clusters: Sequence[int], hits: Tensor) -> list[int]:
    """The most used expert of each cluster, the first of several."""
    return [max(group, key=lambda e: (int(hits[e]), -e)) for group in members(clusters)]


def shares(hits: Tensor) -> Tensor:
    """The share of each expert in all choices [E]; equal ones where nothing was counted."""
    hits = hits.double().cpu()
    return hits / hits.sum() if hits.sum() > 0 else torch.full_like(hits, 1 / len(hits))


def spread(similar: Tensor, clusters: Sequence[int], hits: Tensor) -> float:
    """What clusters cost: `sum_e f_e (1 - s_er)`, f the share of an expert, r its cluster's most used one."""
    core = torch.tensor(cores(clusters, hits))[torch.tensor(list(clusters))]
    unlike = 1 - similar[torch.arange(len(similar)), core]
    return float((shares(hits) * unlike).sum())


def cheapest(costs: Sequence[Sequence[float]], budget: int, least: int) -> list[int]:
    """Numbers `n_l >= least` of clusters with the least `sum_l costs_l[n_l]`, `budget` in all.

    Exact, by dynamic programming over the layers; `costs_l[n]` is for n = 0, 1, ... clusters.
    """
    best, chosen = np.full(budget + 1, np.inf), []
    best[0] = 0
    for row in costs:
        sums, taken = np.full(budget + 1, np.inf), np.zeros(budget + 1, dtype=int)
        for count in range(least, min(len(row) - 1, budget) + 1):
            reached = best[: budget + 1 - count] + row[count]
            better = reached < sums[count:]
            sums[count:][better] = reached[better]
            taken[count:][better] = count
        best = sums
        chosen.append(taken)
    if not np.isfinite(best[budget]):
        raise SparsifyError(f"{len(costs)} layers cannot share {budget} clusters")
    counts = []
    for taken in reversed(chosen):
        counts.append(int(taken[budget]))
        budget -= counts[-1]
    return counts[::-1]


def aligned(reference: Tensor, neurons: Tensor) -> Tensor:
    """The order [m] in which the neurons of an expert are most like those of another, one by one.

    Rows [m, n] are all that belongs to a neuron: of gate, up and down side by side, so that
    `C = reference neurons^T = Wg_r Wg_e^T + Wu_r Wu_e^T + Wd_r^T Wd_e`. Maximises `sum_i C[i, order_i]`.
    """
    cost = reference.double() @ neurons.double().T
    # The reference is in the rows: what is assigned to them indexes the other directly.
    _, order = linear_sum_assignment(cost.cpu().numpy(), maximize=True)
    return torch.as_tensor(order, device=neurons.device)


def merged(tensors: Tensor, hits: Tensor) -> Tensor:
    """`sum_e f_e T_e / sum_e f_e` of tensors [experts, ...]; their plain mean where no one was used."""
    weights = shares(hits).to(tensors.device)
    mean: Tensor = torch.tensordot(weights, tensors.double(), 1)
    return mean


def spectral() -> ModuleType:
    """scikit-learn's clusters; SparsifyError where the package is missing."""
    try:
        return import_module("sklearn.cluster")
    except ImportError as error:
        raise SparsifyError(
            "clusters of experts need the package 'scikit-learn'; run: pip install 'sparsify-fx[experts]'"
        ) from error


def _strangest(similar: Tensor, labels: Sequence[int]) -> int:
    """The expert least like the others of its cluster, in a cluster of several."""
    same = torch.tensor(labels)[:, None] == torch.tensor(labels)
    counts = same.sum(1)
    likeness = (similar * same).sum(1) / counts
    return int(likeness.where(counts > 1, torch.inf).argmin())
