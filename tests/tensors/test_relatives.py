"""RIA, DSnoT and ALPS: against slow oracles, and against the methods that they better."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.tensors.alps import alps
from sparsify.tensors.dsnot import dsnot
from sparsify.tensors.masks import check_nm, keep_global, keep_nm, keep_rows
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.scores import magnitude, ria, wanda
from sparsify.tensors.sparsegpt import sparsegpt

Draw = Callable[..., Any]
HALF = Pattern(2, 4)


def test_ria_is_its_formula_and_spares_small_rows(layer: Draw) -> None:
    one = layer(0, outputs=256)
    weight, square = one.weight.clone(), one.square_sum
    weight[3] *= 1e-3
    score = ria(weight, square)
    size = weight.abs()
    for i, j in ((0, 0), (3, 7), (60, 200)):
        expected = size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()
        assert float(score[i, j]) == pytest.approx(float(expected * square[j] ** 0.25))
    kept = {name: keep_global(s, 0.7)[3].sum() for name, s in (("ria", score), ("size", size))}
    assert kept["size"] == 0
    assert kept["ria"] >= 3


def slowly(
    weight: Tensor, mask: Tensor, score: Tensor, mean: Tensor, variance: Tensor, m: int | None
) -> Tensor:
    """DSnoT one row and one entry at a time."""
    kept = mask.clone()
    for i in range(len(kept)):
        effect = weight[i] * mean
        loss = float(effect[~kept[i]].sum())
        sign = 1 if loss > 0 else -1
        for _ in range(50):
            if abs(loss) <= 0.1 or loss * sign < 0:
                break
            columns = range(len(effect))
            grow = [j for j in columns if not kept[i, j] and sign * effect[j] > 0]
            prune = [j for j in columns if kept[i, j] and sign * effect[j] < 0]
            if m is not None:
                grow = [j for j in grow if any(k // m == j // m for k in prune)]
            if not grow or not prune:
                break
            back = max(grow, key=lambda j: float(effect[j].abs() / variance[j]))
            if m is not None:
                prune = [k for k in prune if k // m == back // m]
            gone = min(prune, key=lambda j: float(score[i, j]))
            kept[i, back], kept[i, gone] = True, False
            loss += float(effect[gone] - effect[back])
    return kept


@pytest.mark.parametrize("pattern", [None, HALF])
def test_dsnot_swaps_as_the_slow_loop_does_and_the_mean_loss_falls(
    layer: Draw, pattern: Pattern | None
) -> None:
    one = layer(1)
    x = one.x + torch.randn(one.x.shape[1], generator=torch.Generator().manual_seed(9)).double()
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    score = wanda(one.weight, x.square().sum(0))
    mask = keep_nm(score, HALF) if pattern else keep_rows(score, 0.6)
    found = dsnot(one.weight, mask, score, mean, variance, pattern=pattern)
    expected = slowly(one.weight, mask, score, mean, variance, 4 if pattern else None)
    assert torch.equal(found, expected)
    assert not torch.equal(found, mask)
    assert torch.equal(found.sum(1), mask.sum(1))
    if pattern is not None:
        check_nm(found, pattern)

    def loss(kept: Tensor) -> Tensor:
        return (one.weight * mean * ~kept).sum(1).abs()

    assert float(loss(found).mean()) < 0.5 * float(loss(mask).mean())


def test_dsnot_leaves_rows_alone_that_lose_little(layer: Draw) -> None:
    one = layer(2)
    score = wanda(one.weight, one.square_sum)
    mask = keep_rows(score, 0.5)
    zero = torch.zeros(one.x.shape[1], dtype=torch.float64)
    assert torch.equal(dsnot(one.weight, mask, score, zero, zero + 1), mask)


@pytest.mark.parametrize("seed", range(3))
def test_alps_loses_less_than_sparsegpt(layer: Draw, seed: int) -> None:
    one = layer(seed)
    weight, gram = one.weight.float(), one.gram.float()
    for rule in ({"sparsity": 0.6}, {"sparsity": 0.7}, {"pattern": HALF}):
        found, mask = alps(weight, gram, **rule)
        other, _ = sparsegpt(weight, gram, **rule)
        losses = one.error(found), one.error(other)
        print(f"seed {seed} {rule}: {losses[0]:.4f} against {losses[1]:.4f}")
        assert losses[0] < losses[1]
        assert bool((found[~mask] == 0).all())
        if "pattern" in rule:
            check_nm(mask, HALF)
        else:
            zeros = int(mask.numel() * rule["sparsity"] + 1e-6)
            assert int((~mask).sum()) == zeros


def test_alps_ends_at_the_least_squares_of_its_support(layer: Draw) -> None:
    one = layer(0, outputs=6, inputs=32)
    found, mask = alps(one.weight, one.gram, sparsity=0.5, damping=0.0, finish=60)
    for row, kept, dense in zip(found, mask, one.weight, strict=True):
        exact = torch.linalg.lstsq(one.x[:, kept], one.x @ dense).solution
        assert torch.allclose(row[kept], exact, rtol=1e-5, atol=1e-8)


def test_alps_on_white_inputs_comes_close_to_magnitude_the_optimum_there() -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, _ = alps(weight, torch.eye(32, dtype=torch.float64) * 5, sparsity=0.5)
    best = weight * keep_global(magnitude(weight), 0.5)
    losses = [float((weight - pruned).norm()) for pruned in (best, found)]
    assert losses[0] <= losses[1] < 1.1 * losses[0]


def test_alps_with_inputs_that_never_were_active(layer: Draw) -> None:
    one = layer(0)
    gram = one.gram.clone()
    gram[5], gram[:, 5] = 0, 0
    found, _ = alps(one.weight, gram, pattern=HALF, damping=0.0)
    assert bool(found.isfinite().all())
    with pytest.raises(OptionError, match="exactly one of sparsity and pattern"):
        alps(one.weight, one.gram)
