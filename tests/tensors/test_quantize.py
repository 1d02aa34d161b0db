"""Scales and codes against formulas worked out in float64 and searches by brute force."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors import quantize
from sparsify.tensors.quantize import (
    absmax_scales,
    dequantize,
    histogram_scales,
    largest_code,
    mse_scales,
    round_activations,
    round_weight,
)
from sparsify.tensors.slimquant import best_clip

CHOICES = [absmax_scales, mse_scales, histogram_scales]
quick = settings(deadline=None, max_examples=60)
Choice = Callable[[Tensor, int, int], Tensor]


def heavy(seed: int, rows: int = 64, columns: int = 300) -> Tensor:
    """Weights with the heavy tails of Student's t (4 degrees), half of them pruned."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_t(4, (rows, columns)) * (generator.random((rows, columns)) < 0.5)
    return torch.tensor(weight, dtype=torch.float32)


def error(weight: Tensor, scales: Tensor, group: int, bits: int) -> float:
    back = dequantize(round_weight(weight, scales, group, bits), scales, group)
    return float((back - weight).double().square().sum())


def test_the_largest_code_leaves_the_grid_symmetric() -> None:
    assert [largest_code(bits) for bits in range(2, 9)] == [1, 3, 7, 15, 31, 63, 127]
    for bits in (1, 9):
        with pytest.raises(OptionError) as caught:
            largest_code(bits)
        assert str(caught.value) == f"{bits} bits make no codes: they have 2 to 8"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 96, 128])
def test_absmax_is_the_largest_size_of_a_group_over_the_largest_code(bits: int, group: int) -> None:
    weight = heavy(1)
    scales = absmax_scales(weight, group, bits)
    assert scales.dtype == torch.float16
    assert list(scales.shape) == [64, math.ceil(300 / group)]
    for row, first in ((0, 0), (17, group), (63, 300 // group * group)):
        peak = weight[row, first : first + group].abs().max()
        assert scales[row, first // group] == (peak / largest_code(bits)).half()


@quick
@given(st.floats(2.0**-140, 60000.0 * 7, width=32), st.sampled_from([4, 8]), st.integers(0, 10**6))
def test_rounding_is_off_by_half_a_step_at_most(size: float, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = size * (2 * torch.rand(3, 70, generator=generator, dtype=torch.float64) - 1).float()
    scales = absmax_scales(weight, 32, bits)
    assert (scales > 0).all()
    codes = round_weight(weight, scales, 32, bits)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= largest_code(bits)
    steps = scales.double()[:, torch.arange(70) // 32]
    lost = (dequantize(codes, scales, 32).double() - weight.double()).abs()
    # The scale is off by 2^-11 of itself: the largest code by 2^-11 of it, in steps.
    assert (lost <= steps * (0.5 + 2**-10)).all()


def test_halves_round_to_even_and_far_values_are_clamped() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 9.0, -9.0]])
    codes = round_weight(weight, torch.ones(1, 1).half(), 8, 4)
    assert codes.tolist() == [[0, 2, 2, 0, -2, -2, 7, -7]]


@pytest.mark.parametrize("choose", CHOICES)
def test_zeros_stay_zeros(choose: Choice) -> None:
    weight = heavy(2)
    scales = choose(weight, 64, 4)
    back = dequantize(round_weight(weight, scales, 64, 4), scales, 64)
    assert not back[weight == 0].any()
    nothing = choose(torch.zeros(3, 40), 32, 4)
    assert nothing.tolist() == [[0, 0]] * 3
    assert not round_weight(torch.ones(3, 40), nothing, 32, 4).any()


def test_a_scale_too_small_for_float16_is_rounded_up() -> None:
    weight = torch.tensor([[1e-45, 0.0], [7 * 2.5 * 2**-24, 0.0], [7 * 1.25 * 2**-14, 0.0]])
    scales = absmax_scales(weight, 2, 4).double()
    assert scales.flatten().tolist() == [2**-24, 3 * 2**-24, 1.25 * 2**-14]


@pytest.mark.parametrize("choose", CHOICES)
def test_weights_that_no_scale_holds_are_refused(choose: Choice) -> None:
    sentence = r"a scale of (100000|99804\.7) does not fit float16, whose largest number is 65504;"
    with pytest.raises(SparsifyError, match=sentence):
        choose(torch.full((2, 4), 7e5), 4, 4)
    with pytest.raises(SparsifyError, match="the weight to round has 8 of 8 values that are NaN"):
        choose(torch.full((2, 4), math.nan), 4, 4)
    with pytest.raises(
        SparsifyError, match=r"must be a matrix \[out, in\], but its shape is \[4\]"
    ):
        choose(torch.ones(4), 4, 4)
    with pytest.raises(OptionError, match="group 0 has no columns"):
        choose(torch.ones(2, 4), 0, 4)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_the_search_of_each_group_never_loses_more_than_absmax(bits: int, group: int) -> None:
    weight = heavy(3)
    for row in weight[:4].split(1):
        searched = error(row, mse_scales(row, group, bits), group, bits)
        assert searched <= error(row, absmax_scales(row, group, bits), group, bits) * (1 + 1e-6)
    searched = error(weight, mse_scales(weight, group, bits), group, bits)
    absmax = error(weight, absmax_scales(weight, group, bits), group, bits)
    # At 8 bits a hundredth less clips more than the finer steps give back.
    assert searched <= absmax * (1 if bits == 8 else 0.97)


def test_the_search_of_each_group_is_brute_force_over_its_candidates() -> None:
    weight = heavy(4, rows=1, columns=48)
    least = math.inf
    for hundredths in range(100, 20, -1):
        scale = torch.tensor([[float(weight.abs().max()) * hundredths / 100 / 7]]).half()
        least = min(least, error(weight, scale, 48, 4))
    assert error(weight, mse_scales(weight, 48, 4), 48, 4) == pytest.approx(least, rel=1e-6)


def test_the_size_of_a_slab_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(5)
    whole = mse_scales(weight, 32, 4)
    monkeypatch.setattr(quantize, "SLAB", 3 * 320)
    assert mse_scales(weight, 32, 4).equal(whole)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", [6, 7])
def test_the_histogram_search_is_near_the_best_single_scale(bits: int, seed: int) -> None:
    weight = heavy(seed, 200, 300)
    size = weight.numel()
    flat = weight.reshape(1, -1)
    clip = best_clip(weight, largest_code(bits))
    peak = float(weight.abs().max())
    assert 0 < clip <= peak
    scales = histogram_scales(weight, 64, bits)
    assert list(scales.shape) == [200, 5]
    assert (scales == torch.tensor(clip / largest_code(bits)).half()).all()
    found = error(weight, scales, 64, bits)
    tried = [peak * i / 400 / largest_code(bits) for i in range(20, 401)]
    best = min(error(flat, torch.tensor([[scale]]).half(), size, bits) for scale in tried)
    assert found <= 1.02 * best
    # One scale for the tensor without a search: heavy tails make it far worse at 4 bits.
    absmax = error(flat, absmax_scales(flat, size, bits), size, bits)
    assert found < (0.3 if bits == 4 else 0.9) * absmax


def test_the_clip_of_gaussian_weights_is_that_of_the_bell_curve() -> None:
    sizes = np.linspace(0, 8, 20001)
    bell = np.exp(-(sizes**2) / 2)
    expected = []
    for clip in np.arange(1.5, 4, 0.01):
        rounded = np.minimum(np.rint(sizes / clip * 7), 7) * clip / 7
        expected.append((float((bell * (sizes - rounded) ** 2).sum() / bell.sum()), clip))
    least, best = min(expected)
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    assert best_clip(weight, 7) == pytest.approx(best, abs=0.1)
    lost = error(weight, histogram_scales(weight, 128, 4), 128, 4)
    assert lost / float(weight.double().square().sum()) == pytest.approx(least, rel=0.01)


def test_scales_must_fit() -> None:
    codes = torch.zeros(2, 40, dtype=torch.int8)
    for wrong in (torch.ones(2, 2), torch.ones(2, 3).half(), torch.ones(2).half()):
        for use in (
            lambda s: dequantize(codes, s, 32),
            lambda s: round_weight(codes.float(), s, 32, 8),
        ):
            with pytest.raises(SparsifyError) as caught:
                use(wrong)
            assert str(caught.value) == (
                f"the scales must be torch.float16 [2, 2], but they are {wrong.dtype} "
                f"{list(wrong.shape)}"
            )


@quick
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=70),
    st.sampled_from([32, 64]),
)
def test_activations_round_as_the_text_says(row: list[float], group: int) -> None:
    codes, scales = round_activations(torch.tensor(row), group)
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float32
    padded = row + [0.0] * (-len(row) % group)
    assert list(codes.shape) == [len(padded)]
    for first in range(0, len(padded), group):
        part = np.array(padded[first : first + group], dtype=np.float32)
        peak = np.abs(part).max()
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(127) / peak
        if not np.isfinite(inverse):
            inverse = np.float32(0)
        expected = np.rint(part * inverse)
        assert codes[first : first + group].tolist() == expected.tolist()
        assert float(scales[first // group]) == float(peak / np.float32(127))


def test_activations_without_numbers_give_nan() -> None:
    x = torch.ones(2, 3, 70)
    x[0, 1, 40] = math.nan
    x[1, 2, 69] = -math.inf
    codes, scales = round_activations(x, 32)
    assert list(codes.shape) == [2, 3, 96]
    assert scales.isnan().nonzero().tolist() == [[0, 1, 1], [1, 2, 2]]
    assert not codes[0, 1, 32:64].any()
    assert (codes[1, 1, :70] == 127).all()
    assert not codes[..., 70:].any()


def test_the_smallest_activations_round_to_nothing() -> None:
    x = torch.tensor([1e-40, -1e-45, 0.0, 3e-37])
    codes, scales = round_activations(x, 4)
    assert codes.tolist() == [0, 0, 0, 0]
    assert scales.isfinite().all()
