"""SLiM's arithmetic: the clip, the closed forms of the branch, and what rounding the branch costs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.lowrank import (
    best_rank,
    best_rank_by_gram,
    best_rank_by_saliency,
    saliency,
)
from sparsify.tensors.masks import keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import (
    absmax_scales,
    dequantize,
    histogram_scales,
    mse_scales,
    round_weight,
)
from sparsify.tensors.scores import wanda
from sparsify.tensors.slimquant import best_clip

RANK = 25  # a tenth of the 256 inputs
Draw = Callable[..., Any]  # the factory of conftest


def rounded(weight: Tensor, scales: Tensor, group: int) -> Tensor:
    return dequantize(round_weight(weight, scales, group, 4), scales, group)


def compressed(layer: Any) -> Tensor:
    """SLiM-Quant, then Wanda at 2:4 by the weight as it was."""
    weight = layer.weight.float()
    score = wanda(weight, layer.square_sum)
    return rounded(weight, histogram_scales(weight, 128, 4), 128) * keep_nm(score, Pattern(2, 4))


def lost(layer: Any, error: Tensor, a: Tensor, b: Tensor) -> float:
    return float((layer.x.double() @ (error.double() - b.double() @ a.double()).T).norm())


@pytest.mark.parametrize("draw", ["gaussian", "laplace", "student"])
def test_the_clip_is_that_of_an_exhaustive_search(draw: str) -> None:
    """S1: the same integral at every edge of a bin, by a loop in numpy."""
    generator = np.random.default_rng(0)
    size = (512, 512)
    values = {
        "gaussian": generator.standard_normal(size),
        "laplace": generator.laplace(size=size),
        "student": generator.standard_t(4, size),
    }[draw]
    sizes = np.abs(values).ravel()
    bins, peak = 512, sizes.max()
    density, edges = np.histogram(sizes, bins, (0, peak))
    centres = (edges[1:] + edges[:-1]) / 2
    errors = []
    for clip in edges[1:]:
        inside = np.minimum(np.rint(centres / clip * 7), 7) * clip / 7
        errors.append(float((density * (centres - inside) ** 2).sum()))
    best = float(edges[1:][int(np.argmin(errors))])
    found = best_clip(torch.tensor(values), 7)
    assert abs(found - best) <= 2 * peak / bins + 1e-9


def test_gaussian_weights_lose_a_third_of_what_absmax_loses() -> None:
    """S1: one scale a tensor for both; the factor of the paper's setting is 3.4."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    whole = weight.reshape(1, -1)
    ours = rounded(weight, histogram_scales(weight, 128, 4), 128) - weight
    theirs = rounded(whole, absmax_scales(whole, whole.numel(), 4), whole.numel()) - whole
    assert 3 * ours.square().sum() < theirs.square().sum()
    assert float(ours.square().sum() / weight.square().sum()) == pytest.approx(0.0123, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_each_closed_form_gives_back_more_of_the_output(layer: Draw, seed: int) -> None:
    """S2: no branch > naive > by saliency >= by the Gram matrix, on inputs with outlying channels."""
    wide = layer(seed, outputs=192, outliers=8)
    error = wide.weight - compressed(wide)
    size, rank = saliency(wide.square_sum, len(wide.x)), RANK
    nothing = torch.zeros(rank, 256), torch.zeros(192, rank)
    naive = lost(wide, error, *best_rank(error, rank))
    slim = lost(wide, error, *best_rank_by_saliency(error, size, rank))
    gram = lost(wide, error, *best_rank_by_gram(error, wide.gram, rank, damping=1e-6))
    assert lost(wide, error, *nothing) > 1.05 * naive
    assert naive > 1.1 * slim
    assert slim > 1.5 * gram
    # The least any factors can lose: the singular values of X E^T that are left out.
    best = torch.linalg.svdvals(wide.x @ error.T)[rank:].norm()
    assert gram == pytest.approx(float(best), rel=1e-3)


def test_even_inputs_make_the_three_one(layer: Draw) -> None:
    """S2: with a saliency that is the same everywhere, and white inputs, all are the plain form."""
    error = layer(3).weight
    a, b = best_rank(error, 5)
    for one, two in (
        best_rank_by_saliency(error, torch.full((256,), 3.0, dtype=torch.float64), 5),
        best_rank_by_gram(error, torch.eye(256, dtype=torch.float64), 5),
    ):
        torch.testing.assert_close(two @ one, b @ a, rtol=1e-8, atol=1e-10)


def test_nothing_is_lost_at_full_rank(layer: Draw) -> None:
    wide = layer(4)
    error = wide.weight - compressed(wide)
    size = saliency(wide.square_sum, len(wide.x))
    for a, b in (
        best_rank_by_saliency(error, size, 64),
        best_rank_by_gram(error, wide.gram, 64),
    ):
        torch.testing.assert_close(b @ a, error, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 7, 40])
def test_the_weighted_error_is_the_norm_of_the_singular_values_left_out(
    layer: Draw, rank: int
) -> None:
    """S3: by the eigenvalues of E D^2 E^T, another road."""
    wide = layer(5)
    error, size = wide.weight, saliency(wide.square_sum, len(wide.x))
    a, b = best_rank_by_saliency(error, size, rank)
    found = ((error - b @ a) * size).norm()
    squares = torch.linalg.eigvalsh(error * size.square() @ error.T).flip(0).clamp(min=0)
    assert float(found) == pytest.approx(float(squares[rank:].sum().sqrt()), rel=1e-5)


def test_no_saliency_is_zero() -> None:
    """S3: dead channels get the smallest of the others, all dead ones 1."""
    found = saliency(torch.tensor([0.0, 8.0, 18.0, 0.0]), 2)
    torch.testing.assert_close(found, torch.tensor([2.0, 4.0, 5.0, 2.0]))
    assert saliency(torch.zeros(3), 5).tolist() == [1, 1, 1]


def test_a_dead_channel_leaves_the_factors_finite(layer: Draw) -> None:
    wide = layer(6)
    square, gram = wide.square_sum.clone(), wide.gram.clone()
    square[9] = 0
    gram[9] = gram[:, 9] = 0
    for a, b in (
        best_rank_by_saliency(wide.weight, saliency(square, 1024), 8),
        best_rank_by_gram(wide.weight, gram, 8),
    ):
        assert a.isfinite().all()
        assert b.isfinite().all()


def test_rounded_branches_are_close_and_one_scale_for_each_is_not(layer: Draw) -> None:
    """S5: AbsMax for groups of 128; a scale a tensor suffers from the long tails of A."""
    wide = layer(7, outputs=192, outliers=8)
    error = wide.weight - compressed(wide)
    size = saliency(wide.square_sum, len(wide.x))
    pair = [factor.float() for factor in best_rank_by_saliency(error, size, RANK)]
    grouped = [rounded(f, absmax_scales(f, 128, 4), 128) for f in pair]
    flat = [f.reshape(1, -1) for f in pair]
    whole = [rounded(f, absmax_scales(f, f.numel(), 4), f.numel()) for f in flat]
    a, b = (w.reshape(f.shape) for w, f in zip(whole, pair, strict=True))
    exact = lost(wide, error, *pair)
    cost = lost(wide, error, *grouped) - exact
    assert 0 < cost < 0.1 * exact
    assert lost(wide, error, a, b) - exact > 1.5 * cost


def test_a_scale_for_the_tensor_loses_what_groups_would_keep(layer: Draw) -> None:
    """S6: no group has leaked into SLiM-Quant: rows of unlike sizes cost it dearly."""
    weight = layer(8).weight.float() * torch.logspace(-1, 1, 64)[:, None]
    tensor = (rounded(weight, histogram_scales(weight, 128, 4), 128) - weight).square().sum(1)
    groups = (rounded(weight, mse_scales(weight, 128, 4), 128) - weight).square().sum(1)
    share = weight.square().sum(1)
    assert (tensor[:20] / share[:20]).min() > 0.5
    assert (groups / share).max() < 0.05


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.tensor([1.0, 0.0, 1.0, 1.0])])
def test_a_saliency_that_cannot_be_inverted_is_refused(wrong: Tensor) -> None:
    with pytest.raises(SparsifyError, match="needs a positive size for each of its 4 inputs"):
        best_rank_by_saliency(torch.ones(2, 4), wrong, 1)
    with pytest.raises(OptionError, match="rank 3 is not from 1 to 2"):
        best_rank_by_saliency(torch.ones(2, 4), torch.ones(4), 3)
