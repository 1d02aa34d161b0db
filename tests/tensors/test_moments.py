import pytest
import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.moments import accumulate_gram, accumulate_level, accumulate_spread


def inputs(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + 3


def test_all_leading_axes_are_tokens() -> None:
    x = inputs(0, 3, 5, 4)
    rows = x.reshape(15, 4)
    gram = accumulate_gram(torch.zeros(4, 4, dtype=torch.float64), x)
    torch.testing.assert_close(gram, sum(torch.outer(r, r) for r in rows))
    count, mean, scatter = accumulate_spread(0, torch.zeros(4).double(), torch.zeros(4).double(), x)
    assert count == 15
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(scatter / count, rows.var(0, correction=0))
    torch.testing.assert_close(scatter + count * mean.square(), gram.diagonal())


def test_one_token_may_come_alone() -> None:
    x = inputs(1, 4)
    torch.testing.assert_close(accumulate_gram(torch.zeros(4, 4).double(), x), torch.outer(x, x))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[1] * 24, [7, 0, 17], [23, 1]])
def test_spread_does_not_know_the_split(seed: int, sizes: list[int]) -> None:
    x = inputs(seed, 24, 6)
    zeros = torch.zeros(6, dtype=torch.float64)
    state = (0, zeros, zeros)
    for part in torch.split(x, sizes):
        state = accumulate_spread(*state, part)
    whole = accumulate_spread(0, zeros, zeros, x)
    assert state[0] == whole[0]
    torch.testing.assert_close(state[1:], whole[1:], rtol=1e-12, atol=0)


def test_spread_survives_a_mean_that_drowns_it() -> None:
    """Sums of squares in float32 would find a variance that is wrong, or negative, here."""
    exact = inputs(2, 512, 3) + 1e4
    x = exact.float()
    state = (0, torch.zeros(3), torch.zeros(3))
    for part in torch.split(x, 16):
        state = accumulate_spread(*state, part)
    truth = x.double().var(0, correction=0)
    torch.testing.assert_close((state[2] / state[0]).double(), truth, rtol=1e-3, atol=0)
    naive = x.square().sum(0) / 512 - (x.sum(0) / 512).square()
    assert float(((naive.double() - truth) / truth).abs().max()) > 0.1


def test_the_accumulator_sets_the_precision() -> None:
    x = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    total = torch.zeros(1)
    gram = torch.zeros(1, 1)
    for part in torch.split(x, 1):
        total = accumulate_level(total, part[None])
        gram = accumulate_gram(gram, part)
    assert total.dtype == gram.dtype == torch.float32
    assert float(total) == float(gram) == 4096  # bfloat16 would stop at 256


def test_totals_are_not_changed_in_place() -> None:
    gram, squares, zeros = torch.zeros(2, 2), torch.zeros(2), torch.zeros(2)
    x = torch.ones(3, 2, requires_grad=True)
    for fresh in (
        accumulate_gram(gram, x),
        accumulate_level(squares, x[None]),
        *accumulate_spread(0, zeros, zeros, x)[1:],
    ):
        assert not fresh.requires_grad
    assert not torch.cat([gram.flatten(), squares, zeros]).any()


def test_another_number_of_inputs_is_refused() -> None:
    sentence = "statistics of 4 inputs cannot take a batch of shape [2, 3]"
    x = torch.ones(2, 3)
    with pytest.raises(SparsifyError) as caught:
        accumulate_gram(torch.zeros(4, 4), x)
    assert str(caught.value) == sentence
    with pytest.raises(SparsifyError) as caught:
        accumulate_level(torch.zeros(4), x)
    assert str(caught.value) == sentence
    with pytest.raises(SparsifyError) as caught:
        accumulate_spread(0, torch.zeros(4), torch.zeros(4), x)
    assert str(caught.value) == sentence
