"""Shares of layers: exact sums, bounds, order; against a linear-programme solver where there is one."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.alignment import cka, redundancy
from sparsify.tensors.allocation import (
    arithmetic,
    by_outliers,
    by_tails,
    fill,
    hill_exponent,
    kept_of_m,
    outlier_share,
    ranks,
    worth_most,
)
from sparsify.tensors.ladder import cubic

EVEN = torch.full((8,), 100.0)
UNEVEN = torch.tensor([100.0, 30, 50, 20, 80, 10, 60, 40])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(features):
    return features @ features.T


def mean(found, sizes):
    return float((found * sizes.double()).sum() / sizes.double().sum())


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_of_features_with_themselves_turned_and_scaled_is_one(debiased):
    features = drawn(12, 30)
    turned = features @ torch.linalg.qr(drawn(30, 30, seed=1))[0] * 3
    assert float(cka(gram(features), gram(features), debiased=debiased)) == pytest.approx(1)
    assert float(cka(gram(features), gram(turned), debiased=debiased)) == pytest.approx(1)
    other = drawn(12, 5, seed=2)
    one, two = cka(gram(features), gram(other)), cka(gram(other), gram(features))
    assert float(one) == pytest.approx(float(two))
    assert float(one) < 0.9


def test_cka_by_grams_is_cka_by_features():
    first, second = drawn(12, 7), drawn(12, 5, seed=1)
    a, b = first - first.mean(0), second - second.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert float(cka(gram(first), gram(second))) == pytest.approx(float(expected), abs=1e-6)


def test_the_plain_form_saturates_with_few_samples_and_the_debiased_one_does_not():
    first, second = gram(drawn(32, 5000)), gram(drawn(32, 5000, seed=1))
    assert float(cka(first, second)) > 0.95
    assert abs(float(cka(first, second, debiased=True))) < 0.1


def test_a_layer_that_is_there_twice_is_the_most_redundant():
    layers = [drawn(20, 10, seed=s) for s in range(4)]
    layers.append(layers[2] * 2)
    theta = redundancy([gram(f) for f in layers])
    assert set(theta.argsort(descending=True)[:2].tolist()) == {2, 4}
    assert float(theta.sum()) == pytest.approx(1)


def test_features_that_cannot_be_compared_are_refused():
    with pytest.raises(SparsifyError, match="same for every sample"):
        cka(torch.ones(5, 5), gram(drawn(5, 3)))
    with pytest.raises(SparsifyError, match="not of the same samples"):
        cka(torch.ones(5, 5), torch.ones(4, 4))
    with pytest.raises(SparsifyError, match="3 samples are too few"):
        cka(torch.ones(3, 3), torch.ones(3, 3), debiased=True)


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN])
@pytest.mark.parametrize("seed", range(4))
def test_filling_solves_the_linear_programme(sizes, seed):
    cost = drawn(8, seed=seed).abs()
    found = fill(cost, 0.6, 0.02, sizes)
    assert mean(found, sizes) == pytest.approx(0.6, abs=1e-9)
    assert bool(((found >= 0.58 - 1e-12) & (found <= 0.62 + 1e-12)).all())
    solved = linprog(
        cost.numpy(),
        A_eq=[sizes.numpy()],
        b_eq=[0.6 * float(sizes.sum())],
        bounds=[(0.58, 0.62)] * 8,
    )
    assert float((cost * found).sum()) == pytest.approx(solved.fun, abs=1e-9)


def test_half_of_equal_layers_are_at_either_bound_the_costly_ones_low():
    cost = torch.tensor([3.0, 1, 4, 1.5, 9, 2.6, 5, 3.5])
    found = fill(cost, 0.5, 0.01, EVEN)
    assert sorted(found.tolist()) == pytest.approx([0.49] * 4 + [0.51] * 4)
    assert set(found.argsort()[:4].tolist()) == set(cost.argsort()[4:].tolist())
    odd = fill(cost[:7], 0.5, 0.01, EVEN[:7])
    assert sorted(odd.tolist())[3] == pytest.approx(0.5)
    assert fill(cost, 0.0, 0.1, EVEN).tolist() == [0.0] * 8


def test_outliers_are_counted_and_spare_their_layer():
    score = torch.ones(10, 10)
    score[0, :3] = 100
    assert outlier_share(score, 5) == pytest.approx(0.03)
    found = by_outliers(torch.tensor([0.1, 0.3, 0.2]), 0.7, 0.08, torch.tensor([1.0, 2, 3]))
    assert mean(found, torch.tensor([1.0, 2, 3])) == pytest.approx(0.7)
    assert float(found.max() - found.min()) == pytest.approx(0.16)
    assert found.argsort().tolist() == [1, 2, 0]
    assert by_outliers(torch.ones(3), 0.7, 0.08, torch.ones(3)).tolist() == [0.7] * 3


def test_steps_are_even_and_their_mean_exact():
    found = arithmetic(0.02, 0.7, UNEVEN)
    assert mean(found, UNEVEN) == pytest.approx(0.7)
    assert np.diff(found.numpy()) == pytest.approx([0.02] * 7)
    with pytest.raises(OptionError, match="choose a smaller spread"):
        arithmetic(0.2, 0.7, EVEN)


def test_the_tail_of_a_spectrum_gives_its_exponent():
    """Eigenvalues drawn from p(l) ~ l^-a give about a."""
    for wanted in (2.0, 3.5):
        uniform = torch.rand(1500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = (1 - uniform) ** (-1 / (wanted - 1))
        assert hill_exponent(values.sqrt().diag()[:, :]) == pytest.approx(wanted, rel=0.12)
    found = by_tails(torch.tensor([2.0, 4, 3]), 0.6, 0.3, torch.tensor([1.0, 1, 2]))
    assert mean(found, torch.tensor([1.0, 1, 2])) == pytest.approx(0.6)
    assert found.argsort().tolist() == [0, 2, 1]


def test_whole_entries_add_up_to_the_budget():
    sparsity = torch.tensor([0.60, 0.70, 0.75, 0.80, 0.80, 0.85])
    kept = kept_of_m(sparsity, torch.ones(6), 8)
    assert sum(kept) == 12
    assert kept == [3, 2, 2, 2, 2, 1]
    mixed = kept_of_m(fill(drawn(8).abs(), 0.75, 0.1, UNEVEN), UNEVEN, 8)
    total = float((torch.tensor(mixed) * UNEVEN).sum())
    assert 0 <= 2 * float(UNEVEN.sum()) - total < float(UNEVEN.max())


def test_ranks_follow_errors_and_their_sum_is_the_budget():
    error = torch.arange(1.0, 33) ** 2
    for average in range(6, 11):
        found = ranks(error, average, 16)
        assert sum(found) == average * 32
        assert all(b >= a - 1 for a, b in itertools.pairwise(found))
        assert min(found) >= 1
        assert max(found) <= 16
    assert ranks(torch.zeros(4), 3, 4) == [3, 3, 3, 3]
    with pytest.raises(OptionError, match="is not between 1 and 16"):
        ranks(error, 17, 16)


def test_what_is_worth_most_for_its_size_is_taken_first():
    # For their size they are worth 2, 3, 2, 1 and nothing: the second, then the first of two that are
    # equal; the third does not fit any more, the fourth does.
    gain, size = [8.0, 6.0, 8.0, 1.0, 0.0], [4, 2, 4, 1, 1]
    assert worth_most(gain, size, 8) == [True, True, False, True, False]
    assert worth_most(gain, size, 0) == [False] * 5
    assert worth_most(gain, size, 100) == [True, True, True, True, False]
    assert worth_most([], [], 5) == []


def test_the_cubic_ladder_is_the_table_of_the_paper():
    tables = {
        0.5: (0.2440, 0.3920, 0.4680, 0.4960, 0.5),
        0.6: (0.2928, 0.4704, 0.5616, 0.5952, 0.6),
        0.65: (0.3172, 0.5096, 0.6084, 0.6448, 0.65),
        0.7: (0.3416, 0.5488, 0.6552, 0.6944, 0.7),
    }
    for target, table in tables.items():
        assert [cubic(t, 5, target) for t in range(1, 6)] == pytest.approx(table, abs=5e-5)


def test_the_cubic_rise_of_dynamic_pruning_in_tenths():
    """The table of DPF (2006.07253), to four digits, its end exact; from another start it is scaled."""
    half = (0, 0.1355, 0.2440, 0.3285, 0.3920, 0.4375, 0.4680, 0.4865, 0.4960, 0.4995, 0.5)
    most = (0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9)
    for target, table in ((0.5, half), (0.9, most)):
        found = [cubic(t, 10, target) for t in range(11)]
        assert found == pytest.approx(table, abs=5e-5)
        assert found[-1] == target
    assert cubic(0, 10, 0.9, start=0.4) == pytest.approx(0.4)
    assert cubic(5, 10, 0.9, start=0.4) == pytest.approx(0.9 - 0.5 / 8)
