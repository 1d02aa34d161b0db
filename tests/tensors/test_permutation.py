"""Orders of channels against all the orders that there are."""

from itertools import permutations

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.permutation import kept_score, spread


def random_scores(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    # Columns differ in size, as inputs do.
    columns = torch.randn(size, generator=generator).exp()
    return torch.rand(rows, size, generator=generator) * columns


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4"])
@pytest.mark.parametrize("seed", range(4))
def test_it_comes_near_the_best_of_all_orders(pattern, seed):
    scores, form = random_scores(5, 8, seed), Pattern.parse(pattern)
    order = spread(scores, form)
    assert sorted(order.tolist()) == list(range(8))
    every = [kept_score(scores[:, list(o)], form) for o in permutations(range(8)) if o[0] == 0]
    found, least = kept_score(scores[:, order], form), kept_score(scores, form)
    assert least <= found <= max(every) + 1e-6
    assert found >= 0.99 * max(every)


def test_good_channels_that_stand_together_are_parted():
    scores = torch.tensor([[9.0, 8, 7, 6, 1, 1, 1, 1]]).repeat(3, 1)
    pattern = Pattern.parse("2:4")
    assert kept_score(scores, pattern) == 3 * (9 + 8 + 1 + 1)
    assert kept_score(scores[:, spread(scores, pattern)], pattern) == 3 * (9 + 8 + 7 + 6)


def test_rounds_of_exchange_beat_dealing():
    scores, pattern = random_scores(64, 256, 7), Pattern.parse("2:4")
    ranked = scores.sum(0).argsort(descending=True)
    dealt = kept_score(scores[:, ranked.view(4, 64).t().flatten()], pattern)
    one, many = (kept_score(scores[:, spread(scores, pattern, n)], pattern) for n in (1, 8))
    assert kept_score(scores, pattern) < dealt < one <= many


def test_an_order_that_cannot_be_bettered_stays():
    scores = torch.ones(2, 8)
    assert spread(scores, Pattern.parse("2:4")).tolist() == list(range(8))


def test_a_size_that_the_pattern_does_not_divide():
    with pytest.raises(SparsifyError, match="4"):
        spread(torch.ones(2, 6), Pattern.parse("2:4"))
