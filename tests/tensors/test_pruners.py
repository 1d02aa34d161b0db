"""What tells a faithful pruner from a toy: P1 to P8 of the acceptance list."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify.tensors.masks import check_nm, keep_across, keep_global, keep_nm, keep_rows
from sparsify.tensors.moments import accumulate_gram, accumulate_spread
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.scores import magnitude, wanda
from sparsify.tensors.sparsegpt import sparsegpt

Draw = Callable[..., Any]  # the factory of conftest
Rule = float | Pattern
SEEDS = range(4)
METHODS = ("sparsegpt", "wanda", "magnitude")
PATTERNS = [Pattern(2, 4), Pattern(4, 8)]


def prune(method: str, weight: Tensor, gram: Tensor, rule: Rule) -> Tensor:
    if method == "sparsegpt":
        if isinstance(rule, Pattern):
            return sparsegpt(weight, gram, pattern=rule)[0]
        return sparsegpt(weight, gram, sparsity=rule)[0]
    scores = wanda(weight, gram.diagonal()) if method == "wanda" else magnitude(weight)
    if isinstance(rule, Pattern):
        return weight * keep_nm(scores, rule)
    return weight * (keep_rows if method == "wanda" else keep_global)(scores, rule)


@pytest.mark.parametrize("seed", SEEDS)
def test_p1_sparsegpt_loses_least_then_wanda_then_magnitude(layer: Draw, seed: int) -> None:
    one = layer(seed)
    weight, gram = one.weight.float(), one.gram.float()
    for rule in (0.5, 0.6, 0.7, Pattern(4, 8), Pattern(2, 4)):
        losses = [one.error(prune(method, weight, gram, rule)) for method in METHODS]
        print(f"seed {seed} {rule}: " + " < ".join(f"{loss:.4f}" for loss in losses))
        assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
def test_p2_less_freedom_and_more_zeros_lose_more(layer: Draw, seed: int, method: str) -> None:
    one = layer(seed)

    def losses(*rules: Rule) -> list[float]:
        return [one.error(prune(method, one.weight, one.gram, rule)) for rule in rules]

    free = losses(0.5, Pattern(4, 8), Pattern(2, 4))
    assert free[0] < free[1] < free[2]
    rising = losses(0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9)
    assert rising[0] == 0
    assert rising == sorted(set(rising))


@pytest.mark.parametrize("seed", SEEDS)
def test_p3_white_inputs_turn_sparsegpt_into_magnitude_by_block(layer: Draw, seed: int) -> None:
    weight = layer(seed).weight.float()
    white = 37.0 * torch.eye(256)
    # 0.625 of 64 x 128 is a whole number, so that no block rounds its share
    ours, mask = sparsegpt(weight, white, sparsity=0.625)
    blocks = [keep_global(magnitude(part), 0.625) for part in weight.split(128, 1)]
    assert torch.equal(mask, torch.cat(blocks, 1))
    torch.testing.assert_close(ours, weight * mask, rtol=1e-5, atol=0)
    ours, mask = sparsegpt(weight, white, pattern=Pattern(2, 4))
    assert torch.equal(mask, keep_nm(magnitude(weight), Pattern(2, 4)))
    torch.testing.assert_close(ours, weight * mask, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_p4_blocks_do_not_move_a_fixed_mask(
    layer: Draw, seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    one = layer(seed)
    weight, gram = one.weight.to(dtype), one.gram.to(dtype)
    fixed = keep_rows(wanda(weight, gram.diagonal()), 0.5)
    whole, _ = sparsegpt(weight, gram, mask=fixed, block=256)
    for block in (1, 32, 100, 128):
        ours, _ = sparsegpt(weight, gram, mask=fixed, block=block)
        assert float((ours - whole).abs().max() / whole.abs().max()) < tolerance


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_p4_blocks_do_not_move_an_adaptive_pattern(
    layer: Draw, seed: int, pattern: Pattern
) -> None:
    one = layer(seed)
    whole, chosen = sparsegpt(one.weight, one.gram, pattern=pattern, block=256)
    for block in (8, 32, 100, 128):
        ours, mask = sparsegpt(one.weight, one.gram, pattern=pattern, block=block)
        assert torch.equal(mask, chosen)
        assert float((ours - whole).abs().max() / whole.abs().max()) < 1e-12


def test_p4_blocks_do_move_a_free_mask(layer: Draw) -> None:
    one = layer(0)
    masks = [sparsegpt(one.weight, one.gram, sparsity=0.5, block=b)[1] for b in (32, 128)]
    assert int((masks[0] != masks[1]).sum()) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_p4_the_pattern_is_chosen_from_values_already_repaired(layer: Draw, seed: int) -> None:
    """The control of the adaptive choice: the same scores of the untouched weight lose more."""
    one = layer(seed, inputs=64)
    hessian = one.gram + 0.01 * one.gram.diagonal().mean() * torch.eye(64)
    pivots = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(64)])
    frozen = keep_nm(one.weight.square() / pivots, Pattern(2, 4))
    ours, mask = sparsegpt(one.weight, one.gram, pattern=Pattern(2, 4))
    static, _ = sparsegpt(one.weight, one.gram, mask=frozen)
    assert not torch.equal(mask, frozen)
    assert one.error(ours) < one.error(static)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", [0.5, Pattern(2, 4)], ids=str)
def test_p5_least_squares_on_the_same_mask_is_the_floor(layer: Draw, seed: int, rule: Rule) -> None:
    one = layer(seed, outputs=16, inputs=96, tokens=400)
    ours = prune("sparsegpt", one.weight, one.gram, rule)
    targets = one.x @ one.weight.T
    solved = torch.zeros_like(ours)
    for row, kept in enumerate(ours != 0):
        fit = torch.linalg.lstsq(one.x[:, kept], targets[:, row, None]).solution
        solved[row, kept] = fit[:, 0]
    floor, loss = one.error(solved), one.error(ours)
    masked = one.error(one.weight * (ours != 0))
    print(f"seed {seed} {rule}: least squares {floor:.4f} <= {loss:.4f} <= masked {masked:.4f}")
    assert floor <= loss
    assert loss - floor < 0.5 * (masked - floor)  # most of what repair can win is won


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sparsity", [0.5, 0.33, 0.7])
def test_p6_wanda_prunes_every_row_alike(layer: Draw, seed: int, sparsity: float) -> None:
    one = layer(seed)
    mask = keep_rows(wanda(one.weight, one.square_sum), sparsity)
    assert (~mask).sum(1).tolist() == [int(256 * sparsity)] * len(mask)


@pytest.mark.parametrize("seed", SEEDS)
def test_p6_wanda_sees_the_product_of_input_and_weight(layer: Draw, seed: int) -> None:
    one = layer(seed)

    def choose(weight: Tensor, x: Tensor) -> list[Tensor]:
        scores = wanda(weight, x.square().sum(0))
        return [keep_rows(scores, 0.5), keep_nm(scores, Pattern(2, 4))]

    plain = choose(one.weight, one.x)
    factor = torch.logspace(-2, 2, 256, dtype=torch.float64)
    row = torch.ones(len(one.weight), 1, dtype=torch.float64)
    row[5], row[9] = 1e4, 1e-4
    for moved in (
        choose(one.weight / factor, one.x * factor),
        choose(one.weight * row, one.x),
    ):
        assert all(map(torch.equal, moved, plain))
    # the control: the same change of the inputs alone must move the masks
    assert not any(map(torch.equal, choose(one.weight, one.x * factor), plain))


@pytest.mark.parametrize("sparsity", [0.5, 0.37, 0.9])
def test_p7_zeros_are_what_was_asked_for(layer: Draw, sparsity: float) -> None:
    layers = [layer(seed, outputs=10 + seed, inputs=60) for seed in SEEDS]
    total = sum(one.weight.numel() for one in layers)
    for one in layers:
        size = one.weight.numel()
        ours, mask = sparsegpt(one.weight, one.gram, sparsity=sparsity, block=32)
        assert int((ours == 0).sum()) == int((~mask).sum()) == int(size * sparsity)
        assert int((~keep_global(magnitude(one.weight), sparsity)).sum()) == int(size * sparsity)
    masks = keep_across([magnitude(one.weight) for one in layers], sparsity)
    assert sum(int((~mask).sum()) for mask in masks) == int(total * sparsity)
    everything = torch.cat([one.weight.abs().flatten() for one in layers])
    kept = torch.cat([mask.flatten() for mask in masks])
    assert float(everything[~kept].max()) <= float(everything[kept].min())


@pytest.mark.parametrize("pattern", [*PATTERNS, Pattern(1, 4), Pattern(2, 8)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_p7_every_group_of_every_row_is_full(layer: Draw, pattern: Pattern, method: str) -> None:
    one = layer(1)
    ours = prune(method, one.weight, one.gram, pattern)
    check_nm(ours != 0, pattern)


@pytest.mark.parametrize("rule", [0.5, Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("tokens", [20, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p7_dead_inputs_and_few_tokens_leave_no_nan(
    layer: Draw, rule: Rule, tokens: int, dtype: torch.dtype
) -> None:
    one = layer(2, inputs=64, tokens=tokens)
    dead = [0, 7, 8, 9, 63]
    one.x[:, dead] = 0
    weight, gram = one.weight.to(dtype), one.gram.to(dtype)
    for method in METHODS:
        ours = prune(method, weight, gram, rule)
        assert ours.isfinite().all()
        assert int((ours == 0).sum()) == weight.numel() // 2
        if method != "magnitude":
            # no group of four holds more than two of them, so a pattern can prune them all
            assert not ours[:, dead].any()
    assert one.error(prune("sparsegpt", weight, gram, rule)) < 0.2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p8_statistics_do_not_know_the_split(layer: Draw, seed: int, dtype: torch.dtype) -> None:
    x = layer(seed, inputs=24, tokens=128 * 4).x.reshape(128, 4, 24).to(dtype)

    def gather(batches: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        gram, zeros = torch.zeros(24, 24, dtype=dtype), torch.zeros(24, dtype=dtype)
        spread = (0, zeros, zeros)
        for batch in batches:
            gram = accumulate_gram(gram, batch)
            spread = accumulate_spread(*spread, batch)
        count, mean, scatter = spread
        return gram, scatter + count * mean.square()

    gram, squares = gather((x,))
    # off the diagonal terms cancel, so the rounding to expect is that of sqrt(G_ii G_jj)
    size = squares.sqrt().outer(squares.sqrt())
    for batches in (x.split(1), x.split([1, 100, 27]), x.flip(0).split(32)):
        one, two = gather(batches)
        assert float(((one - gram) / size).abs().max()) < 1e-5
        torch.testing.assert_close(two, squares, rtol=1e-5, atol=0)
        torch.testing.assert_close(one.diagonal(), squares, rtol=1e-5, atol=0)
