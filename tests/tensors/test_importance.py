"""Importance against slow oracles over plain numbers."""

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.importance import fluctuation, mean_bias, standardise
from sparsify.tensors.masks import keep_across, keep_affordable
from sparsify.tensors.moments import accumulate_cosine, accumulate_level
from sparsify.tensors.scores import mixed_order, second_order


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_fluctuation_is_the_error_that_the_mean_leaves() -> None:
    """Var(x_j) ||W_j||^2 is the mean squared error of the outputs when input j becomes its mean."""
    weight, x = drawn(0, 3, 4), drawn(1, 50, 4) * torch.tensor([1, 2, 3, 0.5]) + 2
    found = fluctuation(weight, x.var(0, correction=0))
    for j in range(4):
        replaced = x.clone()
        replaced[:, j] = x[:, j].mean()
        lost = ((x - replaced) @ weight.T).square().sum(1).mean()
        assert float(found[j]) == pytest.approx(float(lost), rel=1e-9)


def test_the_bias_of_removed_weights_makes_up_for_the_mean() -> None:
    weight, x = drawn(2, 3, 4), drawn(3, 20, 4) + 5
    removed = weight * torch.tensor([True, False, True, False])
    bias = mean_bias(removed, x.mean(0))
    dense, pruned = x @ weight.T, x @ (weight - removed).T + bias
    torch.testing.assert_close(pruned.mean(0), dense.mean(0))
    for i in range(3):
        slow = sum(float(removed[i, j]) * float(x[:, j].mean()) for j in range(4))
        assert float(bias[i]) == pytest.approx(slow)


def test_standardised_scores_have_mean_zero_and_spread_one() -> None:
    scores = [1.0, 4.0, 9.0, 16.0]
    mean, std = statistics.mean(scores), statistics.stdev(scores)
    found = standardise(torch.tensor(scores, dtype=torch.float64))
    assert found.tolist() == pytest.approx([(s - mean) / std for s in scores])
    assert standardise(torch.tensor([3.0, 3.0])).tolist() == [0, 0]
    assert standardise(torch.tensor([3.0])).tolist() == [0]


def test_second_and_mixed_order_entry_by_entry() -> None:
    weight, samples = drawn(4, 2, 3), drawn(5, 7, 2, 3)
    gradient, curvature = samples.mean(0), samples.square().mean(0)
    second = second_order(weight, curvature)
    mixed = mixed_order(weight, gradient, curvature)
    for i, j in itertools.product(range(2), range(3)):
        w = float(weight[i, j])
        g = [float(sample[i, j]) for sample in samples]
        h = sum(v * v for v in g) / 7
        assert float(second[i, j]) == pytest.approx(abs(w * h * w))
        assert float(mixed[i, j]) == pytest.approx(abs(w * sum(g) / 7 - 0.5 * w * h * w))


def test_levels_are_the_mean_size_in_a_sequence_then_the_norm_over_sequences() -> None:
    x = drawn(6, 3, 5, 2)
    kept = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    whole = accumulate_level(torch.zeros(2).double(), x)
    parts = accumulate_level(accumulate_level(torch.zeros(2).double(), x[:1]), x[1:])
    torch.testing.assert_close(whole, parts)
    masked = accumulate_level(torch.zeros(2).double(), x, kept)
    for j in range(2):
        sizes = [[abs(float(v)) for v in row[:, j]] for row in x]
        assert float(whole[j]) == pytest.approx(sum(statistics.mean(s) ** 2 for s in sizes))
        slow = statistics.mean(sizes[0]) ** 2 + statistics.mean(sizes[1][:2]) ** 2
        assert float(masked[j]) == pytest.approx(slow)


def test_cosines_are_summed_token_by_token() -> None:
    x, y = drawn(7, 2, 3, 4), drawn(8, 2, 3, 4)
    x[0, 0] = 0
    found = accumulate_cosine(torch.tensor(0.5).double(), x, y)
    slow = 0.5
    for a, b in zip(x.reshape(6, 4).tolist()[1:], y.reshape(6, 4).tolist()[1:], strict=True):
        slow += sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    assert float(found) == pytest.approx(slow)
    with pytest.raises(SparsifyError, match="it is not residual"):
        accumulate_cosine(torch.tensor(0.0), x, y[..., :3])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
def test_affordable_entries_go_from_the_lowest_until_the_budget_is_spent(
    seed: int, sparsity: float
) -> None:
    scores = [drawn(seed, 5).round(decimals=1), drawn(seed + 9, 7).round(decimals=1)]
    costs = [3.0, 2.0]
    found = keep_affordable(scores, costs, sparsity)
    entries = [(float(s), -(5 * t + i), t, i) for t in (0, 1) for i, s in enumerate(scores[t])]
    spent, gone = 0.0, set()
    for _, _, t, i in sorted(entries):
        spent += costs[t]
        if spent > sparsity * (5 * 3 + 7 * 2) + 1e-9:
            break
        gone.add((t, i))
    assert gone == {(t, i) for t in (0, 1) for i in range(len(scores[t])) if not found[t][i]}


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.75])
def test_equal_costs_are_one_threshold(sparsity: float) -> None:
    scores = [drawn(1, 50), drawn(2, 50).round(decimals=0)]
    found, wanted = keep_affordable(scores, [7.0, 7.0], sparsity), keep_across(scores, sparsity)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(SparsifyError, match="needs one variance for each of its 4 inputs"):
        fluctuation(drawn(0, 3, 4), torch.ones(3))
    with pytest.raises(SparsifyError, match="needs one mean for each of its 4 inputs"):
        mean_bias(drawn(0, 3, 4), torch.ones(3))
    with pytest.raises(SparsifyError, match=r"curvature .* differ in shape"):
        second_order(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(SparsifyError, match="a score is NaN"):
        keep_affordable([torch.tensor([1.0, math.nan])], [1.0], 0.5)
    with pytest.raises(OptionError, match="not in"):
        keep_affordable([torch.ones(3)], [1.0], 1.0)
