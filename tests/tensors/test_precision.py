import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import (
    check_finite,
    check_matrix,
    largest_difference,
    relative_difference,
    widen,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_becomes_float32_and_nothing_becomes_narrower(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    assert widen(torch.ones(2, dtype=dtype)).dtype == wide


def test_what_is_measured_is_not_trained_through() -> None:
    assert not widen(torch.ones(2, requires_grad=True)).requires_grad


def test_values_that_are_no_numbers_are_counted() -> None:
    check_finite(torch.ones(3), "up.weight")
    with pytest.raises(SparsifyError) as caught:
        check_finite(torch.tensor([1.0, float("nan"), float("-inf")]), "up.weight")
    assert str(caught.value) == (
        "up.weight has 2 of 3 values that are NaN or infinite; "
        "mend the model or its calibration data first"
    )


def test_only_a_matrix_is_a_matrix() -> None:
    check_matrix(torch.ones(2, 3), "up.weight")
    with pytest.raises(SparsifyError) as caught:
        check_matrix(torch.ones(2, 3, 4), "up.weight")
    assert str(caught.value) == ("up.weight must be a matrix [out, in], but its shape is [2, 3, 4]")


def test_relative_difference():
    a = torch.tensor([1.0, -4.0, float("inf")])
    assert relative_difference(a, a.clone()) == 0.0
    assert relative_difference(a, a + torch.tensor([0.0, 1.0, 0.0])) == 0.25
    assert relative_difference(a, torch.zeros(3)) == float("inf")
    assert relative_difference(a, a[:2]) == float("inf")


@pytest.mark.parametrize(
    ("wanted", "found", "difference"),
    [
        ([NAN, 2.0], [NAN, 2.0], 0.0),
        ([NAN, 2.0], [NAN, 1.0], 0.5),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([NAN, 2.0], [2.0, NAN], INF),
        ([NAN, NAN], [NAN, NAN], 0.0),
        ([INF, 2.0], [INF, 1.0], 0.5),
        ([INF, 2.0], [-INF, 2.0], INF),
        ([INF, 2.0], [NAN, 2.0], INF),
        ([3e38, 2.0], [INF, 2.0], INF),
        ([0.0, 0.0], [0.0, -0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-30], INF),
        ([0.0, 1e-30], [0.0, 0.0], 1.0),
        ([], [], 0.0),
        ([], [1.0], INF),
        ([[1.0, 2.0]], [1.0, 2.0], INF),
    ],
)
def test_entries_without_a_number_are_equal_only_to_themselves(wanted, found, difference):
    assert relative_difference(torch.tensor(wanted), torch.tensor(found)) == difference


def test_kinds_of_numbers_are_not_mixed_and_integers_are_not_rounded():
    ids = torch.tensor([3, 2**62])
    assert relative_difference(ids, ids.clone()) == 0.0
    assert relative_difference(ids, ids + 1) == INF
    assert relative_difference(ids, ids.double()) == INF
    assert relative_difference(ids.bool(), ids.bool()) == 0.0
    assert relative_difference(ids.bool(), ~ids.bool()) == INF
    assert relative_difference(ids.bool(), ids.bool().long()) == INF
    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert relative_difference(half, half.float()) == 0.0
    assert relative_difference(half, half.double() + torch.tensor([0.5, 0.0])) == 0.25
    wave = torch.tensor([3.0 + 4.0j, 0.0])
    assert relative_difference(wave, wave + 1.0j) == pytest.approx(0.2)


def test_outputs_are_as_far_apart_as_the_farthest_pair():
    a, b = torch.tensor([4.0]), torch.tensor([2.0])
    assert largest_difference([a, b], [a, b]) == 0.0
    assert largest_difference([a, b], [a, a]) == 1.0
    assert largest_difference([a, b], [b, a]) == 1.0
    assert largest_difference([a, b], [a]) == INF
    assert largest_difference([], []) == 0.0
