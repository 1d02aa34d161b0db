import math

import pytest
import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.lowrank import best_rank, delta, initial


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_fresh_branch_adds_nothing_and_fills_its_bound() -> None:
    a, b = initial(12, 400, 8, seed=3)
    assert (a.shape, b.shape) == ((8, 400), (12, 8))
    assert not delta(a, b, 2.0).any()
    bound = 1 / math.sqrt(400)
    assert float(a.abs().max()) <= bound
    assert float(a.max()) > 0.99 * bound
    assert float(a.min()) < -0.99 * bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_the_bound_is_the_kaiming_rule_of_torch() -> None:
    theirs = torch.empty(64, 50)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    ours, _ = initial(1, 50, 64, seed=0)
    assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.02)


def test_the_draw_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = initial(4, 6, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = initial(4, 6, 2, seed=5)
    other, _ = initial(4, 6, 2, seed=6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_dtype_is_a_rounding_of_the_same_draw() -> None:
    wide, _ = initial(4, 6, 2, seed=5)
    a, b = initial(4, 6, 2, seed=5, dtype=torch.bfloat16)
    assert a.dtype == b.dtype == torch.bfloat16
    assert torch.equal(a, wide.bfloat16())


def test_a_branch_without_components_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        initial(4, 6, 0, seed=0)
    assert str(caught.value) == "rank 0 makes no low-rank branch: it must be at least 1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_delta_is_the_exact_product_rounded_once(dtype: torch.dtype) -> None:
    a, b = normal(0, 3, 7).to(dtype), normal(1, 5, 3).to(dtype)
    exact = torch.tensor(
        [
            [2.5 * math.fsum(float(b[i, r]) * float(a[r, j]) for r in range(3)) for j in range(7)]
            for i in range(5)
        ],
        dtype=torch.float64,
    )
    ours = delta(a, b, 2.5)
    assert ours.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(ours, exact, rtol=1e-13, atol=1e-15)
    else:
        assert torch.equal(ours, exact.to(dtype))


def test_delta_takes_the_dtype_of_the_weight() -> None:
    a, b = normal(0, 3, 7).requires_grad_(), normal(1, 5, 3)
    product = delta(a, b, 1.0, torch.float16)
    assert product.dtype == torch.float16
    assert not product.requires_grad


def test_factors_that_do_not_share_the_rank_are_refused() -> None:
    with pytest.raises(SparsifyError) as caught:
        delta(torch.ones(3, 7), torch.ones(5, 2), 1.0)
    assert str(caught.value) == (
        "B [out, rank] and A [rank, in] must share the rank, but their shapes are [5, 2] and [3, 7]"
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_the_error_is_the_norm_of_the_singular_values_left_out(
    seed: int, shape: tuple[int, int]
) -> None:
    matrix = normal(seed, *shape)
    # singular values from the eigenvalues of E^T E: another road than the one tested
    squares = torch.linalg.eigvalsh(matrix.T @ matrix).flip(0).clamp(min=0)
    for rank in range(1, 7):
        a, b = best_rank(matrix, rank)
        assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
        error = (matrix - delta(a, b, 1.0)).square().sum()
        assert float(error) == pytest.approx(float(squares[rank:].sum()), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(a @ a.T, b.T @ b)  # balanced: both carry sqrt(S)


def test_signs_are_fixed() -> None:
    a, b = best_rank(normal(4, 5, 8), 3)
    for row in a:
        assert float(row[row.abs().argmax()]) > 0
    matrix = torch.tensor([[-2.0, 0.0], [0.0, 1.0]])
    a, b = best_rank(matrix, 2)
    torch.testing.assert_close(delta(a, b, 1.0), matrix)


def test_half_precision_is_decomposed_in_float32() -> None:
    matrix = normal(5, 6, 4).bfloat16()
    a, b = best_rank(matrix, 4)
    assert a.dtype == b.dtype == torch.bfloat16
    torch.testing.assert_close(delta(a, b, 1.0).float(), matrix.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_the_matrix_cannot_have_is_refused(rank: int) -> None:
    with pytest.raises(OptionError) as caught:
        best_rank(torch.ones(4, 6), rank)
    assert str(caught.value) == (
        f"rank {rank} is not from 1 to 4, the most a matrix [4, 6] can have"
    )


def test_nan_is_not_decomposed() -> None:
    with pytest.raises(SparsifyError) as caught:
        best_rank(torch.tensor([[math.nan, 1.0]]), 1)
    assert str(caught.value) == (
        "the matrix to approximate has 1 of 2 values that are NaN or infinite; "
        "mend the model or its calibration data first"
    )
