"""Clusters of experts: likeness, spectral clusters, alignment, means, one budget over layers."""

import itertools
import sys

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.clusters import (
    aligned,
    centred,
    cheapest,
    cluster,
    cores,
    members,
    merged,
    renumbered,
    shares,
    similarity,
    spread,
)

PLANTED = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(noise=0.15, seed=0):
    """The likeness of 16 experts whose router rows are those of 4 groups with noise."""
    rows = draw(4, 32, seed=seed)[PLANTED] + noise * draw(16, 32, seed=seed + 1)
    logits = centred(draw(512, 32, seed=seed + 2) @ rows.T)
    return similarity(logits.T @ logits)


@pytest.mark.parametrize("seed", range(10))
def test_planted_groups_are_found(seed):
    assert cluster(planted(seed=seed), 4, seed) == PLANTED


def test_a_shift_of_all_logits_of_a_token_changes_nothing():
    logits = draw(50, 6)
    moved = logits + 100 * draw(50, 1, seed=1)
    one, other = (centred(x) for x in (logits, moved))
    assert torch.allclose(similarity(one.T @ one), similarity(other.T @ other))
    raw = similarity(moved.T @ moved)
    assert float(raw.min()) > 0.98  # without centring all look alike


def test_likeness():
    logits = centred(draw(50, 5))
    found = similarity(logits.T @ logits)
    wanted = (torch.nn.functional.cosine_similarity(logits.T[:, None], logits.T, dim=-1) + 1) / 2
    assert torch.allclose(found, wanted)
    assert found.diagonal().eq(1).all()
    silent = similarity(torch.zeros(3, 3))
    assert torch.equal(silent, torch.full((3, 3), 0.5, dtype=torch.float64).fill_diagonal_(1))


def test_experts_that_are_left_out_say_nothing():
    logits = torch.tensor([[1.0, 3.0, -torch.inf]])
    assert torch.equal(centred(logits), torch.tensor([[-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("size", [3, 6, 16])
def test_as_many_clusters_as_were_asked_for(size):
    alike = torch.ones(size, size, dtype=torch.float64)
    for count in range(1, size + 1):
        for similar in (alike, planted()[:size, :size]):
            found = cluster(similar, count, 0)
            assert sorted(set(found)) == list(range(count))
            assert found == renumbered(found)
    with pytest.raises(SparsifyError, match=f"{size} experts make no {size + 1} clusters"):
        cluster(alike, size + 1, 0)


def test_the_most_used_expert_is_the_core():
    hits = torch.tensor([1, 5, 5, 0, 0])
    assert members([0, 1, 1, 0, 2]) == [[0, 3], [1, 2], [4]]
    assert cores([0, 1, 1, 0, 2], hits) == [0, 1, 4]


def test_what_clusters_cost():
    similar = planted()
    hits = torch.arange(16)
    assert spread(similar, list(range(16)), hits) == 0
    wanted = sum(e / 120 * (1 - float(similar[e, 15])) for e in range(16))
    assert spread(similar, [0] * 16, hits) == pytest.approx(wanted)


def test_one_budget_over_layers_is_spent_best():
    costs = [[0, *draw(6, seed=seed).abs().tolist()] for seed in range(3)]
    for budget, least in ((7, 1), (9, 2), (18, 1)):
        found = cheapest(costs, budget, least)
        every = itertools.product(range(least, 7), repeat=3)
        wanted = min(
            (numbers for numbers in every if sum(numbers) == budget),
            key=lambda numbers: sum(row[n] for row, n in zip(costs, numbers, strict=True)),
        )
        assert found == list(wanted)
    with pytest.raises(SparsifyError, match="3 layers cannot share 2 clusters"):
        cheapest(costs, 2, 1)


def test_neurons_find_back_their_places():
    neurons = draw(48, 96)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(4))
    assert torch.equal(neurons[order][aligned(neurons, neurons[order])], neurons)


def test_means_lie_between_what_is_merged():
    experts = draw(4, 3, 2)
    found = merged(experts, torch.tensor([3, 0, 1, 0]))
    assert torch.allclose(found, (3 * experts[0] + experts[2]) / 4)
    assert (found >= experts.amin(0)).all()
    assert (found <= experts.amax(0)).all()
    assert torch.allclose(merged(experts, torch.zeros(4)), experts.mean(0))
    assert float(shares(torch.tensor([1, 2, 5])).sum()) == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(SparsifyError, match=r"pip install 'sparsify-fx\[experts\]'"):
        cluster(planted(), 4, 0)
