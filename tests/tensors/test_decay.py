"""The pulls on masked weights, against their formulas written out."""

import pytest
import torch

from sparsify.tensors import decay


@pytest.fixture
def numbers():
    draw = torch.Generator().manual_seed(0)
    update, weight = (torch.randn(6, 8, generator=draw) for _ in range(2))
    mask = torch.rand(6, 8, generator=draw) < 0.5
    weight[0, 0], mask[0, 0] = 0.0, False
    return update, weight, mask


@pytest.mark.parametrize(
    ("progress", "wanted"), [(0.0, 0.0), (0.125, 5e-5), (0.25, 1e-4), (0.6, 1e-4), (1.0, 1e-4)]
)
def test_the_strength_rises_to_its_peak_and_stays(progress, wanted):
    assert decay.ramp(progress, 1e-4, 0.25) == pytest.approx(wanted)


def test_without_a_rise_the_strength_is_constant():
    assert decay.ramp(0.0, 1e-4, 0.0) == decay.ramp(0.7, 1e-4, 0.0) == 1e-4


def test_the_pull_is_for_masked_weights_only_and_points_to_zero(numbers):
    update, weight, mask = numbers
    got = decay.pull(update, weight, mask, 0.3)
    for i in range(6):
        for j in range(8):
            u, w = float(update[i, j]), float(weight[i, j])
            assert float(got[i, j]) == pytest.approx(u if mask[i, j] else u + 0.3 * w, abs=1e-6)
    alone = decay.pull(torch.zeros_like(update), weight, mask, 0.3)
    assert bool((alone[~mask] * weight[~mask] >= 0).all())  # a step goes against it


def test_the_gradient_loses_its_say_in_step_with_the_pull(numbers):
    update, weight, mask = numbers
    for progress in (0.0, 0.25, 1.0):
        got = decay.proportional(update, weight, mask, 0.01, progress)
        pulled = (1 - progress) * update + progress * 0.01 * weight.sign()
        assert torch.allclose(got, torch.where(mask, update, pulled), atol=1e-7)
    assert torch.equal(decay.proportional(update, weight, mask, 0.01, 0.0), update)
    assert float(decay.proportional(update, weight, mask, 0.01, 1.0)[0, 0]) == 0  # sign(0) = 0
