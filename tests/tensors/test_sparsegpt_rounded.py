"""Pruning and rounding in one sweep against an oracle that solves for the free columns anew, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.masks import check_nm
from sparsify.tensors.packing.packed import Layout, dense, pack
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import (
    Grid,
    absmax_scales,
    dequantize,
    mse_scales,
    round_weight,
)
from sparsify.tensors.sparsegpt import sparsegpt, sparsegpt_rounded

Draw = Callable[..., Any]  # the factory of conftest
TWO_OF_FOUR = Pattern(2, 4)


def oracle(
    weight: Tensor, gram: Tensor, grid: Grid, pattern: Pattern | None, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fix entries from the left, one row at a time; a block is one group of the grid.

    Each loss is shared out over the free columns by a solve of its own. Of each group a copy is swept
    without rounding first, and the scale taken of that.
    """
    w = weight.clone()
    outputs, inputs = w.shape
    h = gram + damping * gram.diagonal().mean() * torch.eye(inputs, dtype=gram.dtype)
    price = [float(torch.linalg.inv(h[j:, j:])[0, 0]) for j in range(inputs)]
    q, group = 2 ** (grid.bits - 1) - 1, grid.group
    keep = torch.ones(outputs, inputs, dtype=torch.bool)
    scales = torch.zeros(outputs, -(-inputs // group), dtype=torch.float16)

    def sweep(row: Tensor, kept: Tensor, columns: range, scale: float | None) -> None:
        for j in columns:
            if pattern is not None and j % pattern.m == 0:
                losses = [float(row[k]) ** 2 / price[k] for k in range(j, j + pattern.m)]
                order = sorted(range(pattern.m), key=lambda k: -losses[k])
                kept[j : j + pattern.m] = False
                kept[[j + k for k in order[: pattern.n]]] = True
            value = row[j].clone()
            if scale is not None:
                code = max(-q, min(q, round(float(value) / scale))) if scale else 0
                value = torch.tensor(code * scale, dtype=row.dtype)
            value = value if kept[j] else torch.zeros_like(value)
            if j + 1 < inputs:
                solved = torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
                row[j + 1 :] += (row[j] - value) * solved
            row[j] = value

    for o in range(outputs):
        for g, start in enumerate(range(0, inputs, group)):
            columns = range(start, min(start + group, inputs))
            trial = w[o].clone()
            sweep(trial, keep[o].clone(), columns, None)
            part = trial[None, start : columns.stop]
            scales[o, g] = grid.choose(part, len(columns), grid.bits)[0, 0]
            sweep(w[o], keep[o], columns, float(scales[o, g]))
    return w, keep, scales


def rounded_after(layer: Any, pattern: Pattern, grid: Grid) -> Tensor:
    pruned, _ = sparsegpt(layer.weight, layer.gram, pattern=pattern)
    scales = grid.choose(pruned, grid.group, grid.bits)
    return dequantize(round_weight(pruned, scales, grid.group, grid.bits), scales, grid.group)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(1, 2)])
@pytest.mark.parametrize("choose", [absmax_scales, mse_scales])
def test_the_sweep_is_the_oracle(
    layer: Draw, seed: int, pattern: Pattern | None, choose: Callable[..., Tensor]
) -> None:
    small = layer(seed, outputs=4, inputs=20, tokens=60, outliers=1)
    grid = Grid(choose, 8, 4)
    rule: dict[str, Any] = {"sparsity": 0.0} if pattern is None else {"pattern": pattern}
    ours, mask, scales = sparsegpt_rounded(
        small.weight, small.gram, grid, **rule, damping=0.02, block=5
    )
    theirs, chosen, expected = oracle(small.weight, small.gram, grid, pattern, 0.02)
    assert torch.equal(mask, chosen)
    assert torch.equal(scales, expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 96])
def test_values_lie_on_the_grid_and_pack_as_they_are(layer: Draw, bits: int, group: int) -> None:
    small = layer(1, outputs=24, inputs=200, tokens=500)
    weight = small.weight.float()
    grid = Grid(absmax_scales, group, bits)
    ours, mask, scales = sparsegpt_rounded(weight, small.gram.float(), grid, pattern=TWO_OF_FOUR)
    check_nm(mask, TWO_OF_FOUR)
    assert not ours[~mask].any()
    codes = round_weight(ours, scales, group, bits)
    assert torch.equal(dequantize(codes, scales, group), ours)
    layout = Layout(2, 4, 200, 24, f"int{bits}", group)
    assert torch.equal(dense(pack(codes, layout, scales), layout), ours)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("choose", [absmax_scales, mse_scales])
def test_less_is_lost_than_by_rounding_afterwards(
    layer: Draw, seed: int, group: int, choose: Callable[..., Tensor]
) -> None:
    """Of what rounding costs beyond pruning, more than a third comes back."""
    wide = layer(seed)
    grid = Grid(choose, group, 4)
    pruned, _ = sparsegpt(wide.weight, wide.gram, pattern=TWO_OF_FOUR)
    jointly, _, _ = sparsegpt_rounded(wide.weight, wide.gram, grid, pattern=TWO_OF_FOUR)
    least = wide.error(pruned)
    afterwards = wide.error(rounded_after(wide, TWO_OF_FOUR, grid))
    assert least < wide.error(jointly)
    assert wide.error(jointly) - least < 0.67 * (afterwards - least)


def test_a_fixed_mask_and_a_sparsity_are_kept(layer: Draw) -> None:
    small = layer(2, outputs=16, inputs=64, tokens=200)
    grid = Grid(mse_scales, 32, 4)
    mask = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    ours, same, _ = sparsegpt_rounded(small.weight, small.gram, grid, mask=mask)
    assert torch.equal(same, mask)
    assert not ours[~mask].any()
    _, chosen, _ = sparsegpt_rounded(small.weight, small.gram, grid, sparsity=0.6, block=32)
    assert int((~chosen).sum()) == int(16 * 64 * 0.6)


def test_a_dead_group_has_no_scale_and_no_values(layer: Draw) -> None:
    small = layer(3, outputs=8, inputs=96, tokens=200)
    gram = small.gram.clone()
    gram[32:64] = gram[:, 32:64] = 0
    grid = Grid(absmax_scales, 32, 4)
    ours, _, scales = sparsegpt_rounded(small.weight, gram, grid, pattern=TWO_OF_FOUR)
    assert not ours[:, 32:64].any()
    assert not scales[:, 1].any()
    assert (scales[:, [0, 2]] > 0).all()


def test_half_precision_keeps_its_codes(layer: Draw) -> None:
    small = layer(4, outputs=8, inputs=64, tokens=200)
    grid = Grid(absmax_scales, 32, 8)
    weight = small.weight.bfloat16()
    exact, _, scales = sparsegpt_rounded(weight.double(), small.gram, grid, pattern=TWO_OF_FOUR)
    ours, _, same = sparsegpt_rounded(weight, small.gram, grid, pattern=TWO_OF_FOUR)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(same, scales)
    assert torch.equal(round_weight(ours, scales, 32, 8), round_weight(exact, scales, 32, 8))


def test_what_cannot_be_meant_is_refused(layer: Draw) -> None:
    small = layer(5, outputs=4, inputs=8, tokens=20)
    with pytest.raises(OptionError, match="group 0 has no columns"):
        Grid(absmax_scales, 0, 4)
    with pytest.raises(OptionError, match="9 bits make no codes"):
        Grid(absmax_scales, 8, 9)
    grid = Grid(absmax_scales, 8, 4)
    with pytest.raises(OptionError, match="exactly one of sparsity, pattern and mask"):
        sparsegpt_rounded(small.weight, small.gram, grid)
    with pytest.raises(SparsifyError, match="does not fit float16"):
        sparsegpt_rounded(small.weight * 1e7, small.gram, grid, sparsity=0.5)
