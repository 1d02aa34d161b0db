import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import check_finite, check_matrix, relative_difference, widen


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
