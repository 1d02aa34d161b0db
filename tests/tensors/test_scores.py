import math

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.tensors.scores import magnitude, taylor, wanda

WEIGHT = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.5, 0.0]])


def test_magnitude_is_the_size() -> None:
    assert magnitude(WEIGHT).tolist() == [[1, 2, 3], [4, 0.5, 0]]


def test_wanda_is_size_times_norm_of_the_input() -> None:
    x = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 1.0]])
    scores = wanda(WEIGHT, x.square().sum(0))
    expected = [
        [abs(float(w)) * math.hypot(*x[:, j].tolist()) for j, w in enumerate(row)] for row in WEIGHT
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_tokens_turn_the_norm_of_wanda_into_a_root_mean_square() -> None:
    square_sum = torch.tensor([9.0, 16.0, 25.0])
    torch.testing.assert_close(
        wanda(WEIGHT, 7 * square_sum, tokens=7), wanda(WEIGHT, square_sum), rtol=1e-6, atol=0
    )


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    weight = WEIGHT.double().requires_grad_()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (x @ w.T).sin().sum()

    loss(weight).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    scores = taylor(weight, weight.grad)
    step = 1e-6
    for row in range(2):
        for column in range(3):
            shrunk = weight.detach().clone()
            shrunk[row, column] *= 1 - step
            change = float(loss(weight.detach()) - loss(shrunk)) / step
            assert float(scores[row, column]) == pytest.approx(abs(change), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_weights_are_float32(dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype)
    assert magnitude(weight).dtype == torch.float32
    assert wanda(weight, torch.ones(3)).dtype == torch.float32
    # 300 * 300 has no place in float16
    assert float(taylor(weight * 300, weight * 300).max()) == 1200.0**2


def test_a_statistic_that_would_broadcast_is_refused() -> None:
    with pytest.raises(SparsifyError) as caught:
        wanda(WEIGHT, torch.ones(1))
    assert str(caught.value) == (
        "the weight [2, 3] needs one square sum for each of its 3 inputs, but [1] came"
    )


def test_no_token_is_no_statistic() -> None:
    with pytest.raises(SparsifyError) as caught:
        wanda(WEIGHT, torch.zeros(3), tokens=0)
    assert str(caught.value) == "square sums over 0 tokens say nothing; calibrate first"


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(SparsifyError) as caught:
        taylor(WEIGHT, torch.ones(1, 3))
    assert str(caught.value) == ("the weight [2, 3] and its gradient [1, 3] differ in shape")
