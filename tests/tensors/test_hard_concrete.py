"""Hard-concrete masks: the numbers of Sheared LLaMA's code, and the constraint by hand."""

import math

import pytest
import torch

from sparsify.errors import OptionError
from sparsify.tensors import hard_concrete

# Log-alpha -> P(z > 0) and the soft mask.
TABLE = {
    4.605: (0.99798, 0.9960),
    2.0: (0.97337, 0.9168),
    0.0: (0.83182, 0.5000),
    -1.5986: (0.50000, 0.1280),
    -4.605: (0.04713, 0.0040),
}
DRAWS = 400_000


@pytest.mark.parametrize("log_alpha", TABLE)
def test_probabilities_and_soft_masks(log_alpha):
    kept, soft = TABLE[log_alpha]
    value = torch.tensor(log_alpha, dtype=torch.float64)
    assert float(hard_concrete.keep_probability(value)) == pytest.approx(kept, abs=1e-5)
    assert float(hard_concrete.soft(value)) == pytest.approx(soft, abs=5e-5)


@pytest.mark.parametrize(("log_alpha", "mean"), [(0.0, 0.4995), (-2.0, 0.1426), (2.0, 0.8572)])
def test_draws_have_the_mean_and_the_zeros_that_are_expected(log_alpha, mean):
    """Within three standard errors; the published means carry one of their own, 0.0005 at most."""
    z = hard_concrete.sample(
        torch.full((DRAWS,), log_alpha), hard_concrete.logits(DRAWS, (1, 2, 3))
    )
    error = float(z.std()) / math.sqrt(DRAWS)
    assert abs(float(z.mean()) - mean) < 3 * error + 5e-4
    kept = float(hard_concrete.keep_probability(torch.tensor(log_alpha)))
    assert abs(float((z > 0).float().mean()) - kept) < 3 * math.sqrt(kept * (1 - kept) / DRAWS)
    assert float(z.min()) == 0
    assert float(z.max()) == 1


def test_draws_follow_from_their_seeds():
    one, two, other = (hard_concrete.logits(8, seeds) for seeds in ((1, 2), (1, 2), (2, 1)))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_expected_sparsity_ends_where_log_alphas_do():
    bound = torch.full((5,), hard_concrete.BOUND)
    assert float(hard_concrete.expected_sparsity(bound)) == pytest.approx(0.0020, abs=5e-5)
    most = float(hard_concrete.expected_sparsity(-bound))
    assert most == pytest.approx(0.9529, abs=5e-5)
    assert most == pytest.approx(hard_concrete.REACH, abs=1e-6)


def test_gradients_reach_only_masks_between_zero_and_one():
    log_alpha = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    z = hard_concrete.sample(log_alpha, torch.tensor([-9.0, 0.0, 9.0]))
    z.sum().backward()
    assert z.tolist() == [0.0, 0.5, 1.0]
    assert log_alpha.grad[[0, 2]].tolist() == [0.0, 0.0]
    # dz/da = 1.2 s (1 - s) / T at s = 1/2
    assert float(log_alpha.grad[1]) == pytest.approx(1.2 * 0.25 * 1.5)


def test_the_end_keeps_exactly_as_many_and_those_stay_soft():
    values = torch.tensor([2.0, -4.605, 4.605, 0.0])
    assert hard_concrete.settled(values, 2).tolist() == pytest.approx(
        [0.9168, 0, 0.9960, 0], abs=5e-5
    )
    # Among equals the first stays; even what is nearly gone stays when the count says so.
    assert hard_concrete.settled(torch.full((3,), -4.605), 1).tolist() == pytest.approx(
        [0.0040, 0, 0], abs=5e-5
    )
    with pytest.raises(OptionError, match="5 entries cannot be kept of 4"):
        hard_concrete.settled(values, 5)


def test_the_constraint_by_hand():
    """Rows off by 0.1 and -0.2, lambda 2, phi 10: the mean of 0.2 + 0.1 and -0.4 + 0.4."""
    multipliers = torch.tensor([2.0, 10.0], requires_grad=True)
    found = hard_concrete.penalty(torch.tensor([0.6, 0.3]), torch.tensor([0.5, 0.5]), multipliers)
    assert float(found.detach()) == pytest.approx(0.15)
    found.backward()
    assert multipliers.grad.tolist() == pytest.approx([-0.05, 0.025])
