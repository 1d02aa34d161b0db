"""Neurons of a step: their layout, scores against slow oracles, choices, and the ladder."""

import math

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.omission import (
    choose,
    gumbel,
    input_statistic,
    kept_count,
    ladder,
    layout_of,
    neuron_sums,
    positions,
    row_scores,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_layout_of_fused_heads_and_what_stays():
    numbers = torch.tensor([0, 0, 1, 1, 2, 2, -1, -1, -1, 0, 1, 2])
    layout = layout_of(numbers, 3)
    assert layout == [[3, 2], [0, 3], [3, 1]]
    assert positions(torch.tensor([0, 2]), layout).tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 11]
    assert positions(torch.arange(3), layout).tolist() == list(range(12))
    sums = neuron_sums(torch.arange(12.0), layout, 3)
    assert sums.tolist() == [0 + 1 + 9, 2 + 3 + 10, 4 + 5 + 11]


@pytest.mark.parametrize("numbers", [[1, 0], [0, 0, 1], [0, 1, 0], [0, 2, 1]])
def test_a_layout_that_is_not_in_equal_runs_is_refused(numbers):
    with pytest.raises(SparsifyError, match="equal runs"):
        layout_of(torch.tensor(numbers), 3)


def slow_score(x, row, metric):
    """The formulas of the paper, one number at a time."""
    tokens = x.reshape(-1, x.shape[-1]).tolist()
    row = row.tolist()
    if metric == "magnitude":
        return math.sqrt(sum(w * w for w in row))
    if metric == "wanda":
        norms = [math.sqrt(sum(t[c] ** 2 for t in tokens)) for c in range(len(row))]
        return sum(abs(w) * n for w, n in zip(row, norms, strict=True))
    mean = [sum(t[c] for t in tokens) / len(tokens) for c in range(len(row))]
    return abs(sum(m * w for m, w in zip(mean, row, strict=True)))


@pytest.mark.parametrize("metric", ["magnitude", "wanda", "maxip"])
def test_each_metric_orders_rows_as_a_slow_oracle_does(metric):
    x, weight = draw(3, 5, 7) + 0.3, draw(23, 7, seed=1)
    scores = row_scores(weight, metric, input_statistic(x, metric))
    expected = torch.tensor([slow_score(x, row, metric) for row in weight])
    if metric == "wanda":  # a common factor, the square root of the number of tokens
        scores = scores * math.sqrt(15)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert scores.argsort().tolist() == expected.argsort().tolist()


def test_metrics_are_told_apart():
    x, weight = draw(3, 5, 7) * torch.tensor([9.0, 1, 1, 1, 1, 1, 0.1]), draw(23, 7, seed=1)
    orders = [
        row_scores(weight, metric, input_statistic(x, metric)).argsort().tolist()
        for metric in ("magnitude", "wanda", "maxip")
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert row_scores(weight, "uniform", None).tolist() == [1.0] * 23


def test_wanda_in_pieces_is_wanda_at_once(monkeypatch):
    weight, norms = draw(50, 8), draw(8, seed=1).square()
    whole = row_scores(weight, "wanda", norms)
    monkeypatch.setattr("sparsify.tensors.omission._PIECE", 24)
    assert torch.allclose(row_scores(weight, "wanda", norms), whole)
    assert torch.allclose(whole, weight.abs() @ norms.sqrt())


@pytest.mark.parametrize(
    ("size", "rate", "multiple", "count"),
    [
        (8, 0.5, 1, 4), (8, 0.0, 1, 8), (8, 0.99, 1, 1), (5, 0.5, 1, 3), (688, 0.5, 16, 352),
        (2816, 0.5, 64, 1408), (688, 0.3, 16, 480), (96, 0.95, 16, 16), (90, 0.01, 16, 90),
    ],
)  # fmt: skip
def test_how_many_stay(size, rate, multiple, count):
    assert kept_count(size, rate, multiple) == count


def test_the_best_stay_as_many_in_every_group():
    scores = torch.tensor([5.0, 1, 9, 2, 8, 7, 6, 8])
    assert choose(scores, 1, 3).tolist() == [2, 4, 7]
    assert choose(scores, 2, 2).tolist() == [0, 2, 4, 7]
    assert choose(scores, 4, 1).tolist() == [0, 2, 4, 7]
    assert choose(torch.ones(4), 1, 2).tolist() == [0, 1]


def test_sampling_draws_without_replacement_in_proportion():
    scores = torch.tensor([1.0, 2, 4, 1, 0])
    first = torch.zeros(5)
    both = torch.zeros(5)
    for seed in range(4000):
        noise = gumbel(5, (seed,))
        first[choose(scores, 1, 1, noise)] += 1
        pair = choose(scores, 1, 2, noise)
        assert pair.unique().numel() == 2
        both[pair] += 1
    assert torch.allclose(first / 4000, scores / 8, atol=0.025)
    p = scores / 8
    expected = torch.tensor(
        [float(p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(5) if j != i)) for i in range(5)]
    )
    assert torch.allclose(both / 4000, expected, atol=0.025)
    assert first[4] == 0


def test_noise_depends_on_every_seed_alone():
    assert torch.equal(gumbel(9, (1, 2, 3)), gumbel(9, (1, 2, 3)))
    others = [(1, 2, 4), (1, 3, 3), (2, 2, 3), (2, 1, 3)]
    assert all(not torch.equal(gumbel(9, (1, 2, 3)), gumbel(9, other)) for other in others)


def test_the_ladder_is_constant_then_falls_in_equal_steps_to_zero():
    steps, found = 100, []
    for step in range(steps):
        found.append(ladder(step / steps, 0.5, 0.8, 5))
    assert found[:81] == [0.5] * 81
    expected = [0.4] * 4 + [0.3] * 4 + [0.2] * 4 + [0.1] * 4 + [0.0] * 3
    assert found[81:] == pytest.approx(expected)
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0.0


def test_without_a_ladder_the_rate_never_falls():
    assert {ladder(t / 50, 0.3, 1.0, 5) for t in range(50)} == {0.3}
    assert ladder(0.0, 0.5, 0.0, 2) == 0.5
    assert [ladder(t / 4, 0.5, 0.0, 2) for t in range(4)] == [0.5, 0.25, 0.25, 0.0]
