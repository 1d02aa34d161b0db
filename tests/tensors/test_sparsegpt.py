"""SparseGPT against an oracle that inverts each remaining Hessian anew, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.factor import inverse_factor
from sparsify.tensors.masks import check_nm, keep_global
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.sparsegpt import sparsegpt

Draw = Callable[..., Any]  # the factory of conftest


def best(values: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


def oracle(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float | None = None,
    pattern: Pattern | None = None,
    mask: Tensor | None = None,
    damping: float,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Fix columns from the left; solve for all columns right of each pruned entry directly."""
    w = weight.clone()
    outputs, inputs = w.shape
    h = gram + damping * gram.diagonal().mean() * torch.eye(inputs, dtype=gram.dtype)
    # loss of removing j while j.. are free: w_j^2 / [(H_j..)^-1]_jj
    price = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(inputs)])
    keep = torch.ones(outputs, inputs, dtype=torch.bool) if mask is None else mask.clone()
    for j in range(inputs):
        if sparsity is not None and j % block == 0:
            stop = min(j + block, inputs)
            zeros = math.floor(outputs * stop * sparsity) - math.floor(outputs * j * sparsity)
            loss = (w[:, j:stop].square() / price[j:stop]).flatten().tolist()
            flat = torch.zeros(len(loss), dtype=torch.bool)
            flat[best(loss, len(loss) - zeros)] = True
            keep[:, j:stop] = flat.reshape(outputs, -1)
        if pattern is not None and j % pattern.m == 0:
            stop = j + pattern.m
            for row in range(outputs):
                loss = (w[row, j:stop].square() / price[j:stop]).tolist()
                keep[row, j:stop] = False
                keep[row, [j + k for k in best(loss, pattern.n)]] = True
        for row in range(outputs):
            if not keep[row, j]:
                if j + 1 < inputs:
                    solved = torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
                    w[row, j + 1 :] += w[row, j] * solved
                w[row, j] = 0
    return w, keep


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [1, 4, 5, 12, 128])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.7])
def test_unstructured_is_the_oracle(layer: Draw, seed: int, block: int, sparsity: float) -> None:
    small = layer(seed, outputs=5, inputs=12, tokens=40, outliers=1)
    ours, mask = sparsegpt(small.weight, small.gram, sparsity=sparsity, damping=0.02, block=block)
    theirs, chosen = oracle(small.weight, small.gram, sparsity=sparsity, damping=0.02, block=block)
    assert torch.equal(mask, chosen)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", ["2:4", "1:4", "1:2", "2:3", "5:12"])
def test_patterns_are_the_oracle(layer: Draw, seed: int, text: str) -> None:
    small = layer(seed, outputs=5, inputs=12, tokens=40, outliers=1)
    pattern = Pattern.parse(text)
    ours, mask = sparsegpt(small.weight, small.gram, pattern=pattern, damping=0.02, block=4)
    theirs, chosen = oracle(small.weight, small.gram, pattern=pattern, damping=0.02, block=4)
    assert torch.equal(mask, chosen)
    check_nm(mask, pattern)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=24, max_size=24), st.integers(1, 9), st.integers(0, 99))
def test_any_given_mask_is_the_oracle(bits: list[bool], block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    x = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    fixed = torch.tensor(bits).reshape(3, 8)
    ours, mask = sparsegpt(weight, x.T @ x, mask=fixed, damping=0.01, block=block)
    theirs, _ = oracle(weight, x.T @ x, mask=fixed, damping=0.01, block=block)
    assert torch.equal(mask, fixed)
    assert not ours[~fixed].any()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pruned", [1, 3])
def test_pruning_the_first_columns_is_the_best_any_weights_can_do(layer: Draw, pruned: int) -> None:
    """With all kept columns to the right, the sweep is plain least squares on X itself."""
    small = layer(0, outputs=6, inputs=10, tokens=50, outliers=1)
    mask = torch.ones(6, 10, dtype=torch.bool)
    mask[:, :pruned] = False
    ours, _ = sparsegpt(small.weight, small.gram, mask=mask, damping=0.0)
    targets = small.x @ small.weight.T
    solved = torch.linalg.lstsq(small.x[:, pruned:], targets).solution.T
    torch.testing.assert_close(ours[:, pruned:], solved, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_the_factor_is_that_of_the_inverse(layer: Draw, seed: int) -> None:
    gram = layer(seed, inputs=24, tokens=80).gram
    factor = inverse_factor(gram, 0.01)
    hessian = gram / gram.diagonal().mean() + 0.01 * torch.eye(24, dtype=gram.dtype)
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(hessian), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [2.0**-60, 1e-12, 3.0, 1e12, 1e30])
def test_the_scale_of_the_statistics_does_not_matter(layer: Draw, scale: float) -> None:
    small = layer(1, outputs=16, inputs=32, tokens=100)
    weight, gram = small.weight.float(), small.gram.float()
    ours, mask = sparsegpt(weight, gram, sparsity=0.5, block=8)
    scaled, again = sparsegpt(weight, gram * scale, sparsity=0.5, block=8)
    assert torch.equal(mask, again)
    torch.testing.assert_close(scaled, ours, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("rest", [0.0, 1e-3])
def test_a_dead_input_moves_nothing(layer: Draw, damping: float, rest: float) -> None:
    """Neither its neighbours nor the damping, even where only its square was lost to rounding."""
    small = layer(2, outputs=8, inputs=16, tokens=60)
    mask = torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    alone, _ = sparsegpt(small.weight, small.gram, mask=mask, damping=damping)
    place = [*range(6), 16, *range(6, 16)]
    gram = torch.zeros(17, 17, dtype=torch.float64)
    gram[:16, :16] = small.gram
    gram[16, :16] = gram[:16, 16] = rest
    weight = torch.cat([small.weight, torch.full((8, 1), 7.0)], 1)[:, place]
    wider = torch.cat([mask, torch.ones(8, 1, dtype=torch.bool)], 1)[:, place]
    ours, _ = sparsegpt(weight, gram[place][:, place], mask=wider, damping=damping)
    assert not ours[:, 6].any()
    live = [j for j in range(17) if j != 6]
    torch.testing.assert_close(ours[:, live], alone, rtol=1e-10, atol=1e-12)


def test_all_inputs_dead_leaves_zeros_and_an_exact_mask() -> None:
    ours, mask = sparsegpt(torch.ones(4, 8), torch.zeros(8, 8), sparsity=0.5, block=4)
    assert not ours.any()
    assert mask.tolist() == [[True] * 8, [True] * 8, [False] * 8, [False] * 8]


def test_equal_scores_are_kept_in_the_order_of_the_weight() -> None:
    weight, gram = torch.ones(2, 8), torch.eye(8)
    _, mask = sparsegpt(weight, gram, sparsity=0.25, block=4)
    assert mask.tolist() == [[True] * 8, [True, True, False, False] * 2]
    _, mask = sparsegpt(weight, gram, pattern=Pattern(1, 4))
    assert mask.tolist() == [[True, False, False, False] * 2] * 2


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 99),
    st.booleans(),
    st.integers(0, 9),
)
def test_counts_are_exact_in_total_and_even_in_blocks(
    outputs: int, inputs: int, block: int, percent: int, ties: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    x = torch.randn(30, inputs, generator=generator)
    if ties:
        weight, x = weight.sign(), torch.eye(inputs)
    _, mask = sparsegpt(weight, x.T @ x, sparsity=percent / 100, block=block)
    assert int((~mask).sum()) == outputs * inputs * percent // 100
    for part in torch.split(mask, block, 1):
        share = part.numel() * percent / 100
        assert math.floor(share) <= int((~part).sum()) <= math.ceil(share)


def test_what_is_pruned_already_may_come_back_but_the_count_stays(layer: Draw) -> None:
    small = layer(3, outputs=32, inputs=64, tokens=300)
    first, before = sparsegpt(small.weight, small.gram, sparsity=0.3)
    second, after = sparsegpt(first, small.gram, sparsity=0.5)
    assert int((second == 0).sum()) == int((~after).sum()) == 32 * 64 // 2
    assert small.error(second) > small.error(first)
    assert int((before & ~after).sum()) >= 32 * 64 // 2 - int((~before).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_weight_comes_back(layer: Draw, dtype: torch.dtype) -> None:
    small = layer(4, outputs=16, inputs=32, tokens=100)
    weight = small.weight.to(dtype)
    ours, mask = sparsegpt(weight, small.gram.float(), sparsity=0.5)
    exact, chosen = sparsegpt(weight.double(), small.gram, sparsity=0.5)
    assert ours.dtype == dtype
    assert (ours.is_contiguous(), mask.is_contiguous()) == (True, True)
    assert torch.equal(mask, chosen)
    step = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-5
    torch.testing.assert_close(ours.double(), exact, rtol=10 * step, atol=10 * step)


def test_arguments_are_left_alone_and_gradients_cut(layer: Draw) -> None:
    small = layer(5, outputs=8, inputs=16, tokens=60)
    weight, gram = small.weight.clone().requires_grad_(), small.gram
    gram[3] = gram[:, 3] = 0
    fixed = keep_global(weight, 0.5)
    copies = [t.detach().clone() for t in (weight, gram, fixed)]
    rules: list[dict[str, Any]] = [{"sparsity": 0.5}, {"pattern": Pattern(2, 4)}, {"mask": fixed}]
    for rule in rules:
        ours, mask = sparsegpt(weight, gram, **rule)
        assert not ours.requires_grad
        mask.logical_not_()
        ours.zero_()
    for kept, copy in zip((weight, gram, fixed), copies, strict=True):
        assert torch.equal(kept, copy)


def test_a_singular_matrix_without_damping_is_mended() -> None:
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, mask = sparsegpt(torch.ones(4, 12).double(), x.T @ x, sparsity=0.5, damping=0.0)
    assert ours.isfinite().all()
    assert int((~mask).sum()) == 24


def test_damping_is_raised_by_tens_until_the_matrix_is_definite() -> None:
    # the smallest eigenvalue is 1 - 1.5: 0.01 and 0.1 do not lift it over 0, 1 does
    gram = torch.eye(4, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 1.5
    factor = inverse_factor(gram, 0.01)
    torch.testing.assert_close(factor, inverse_factor(gram, 1.0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(factor, inverse_factor(gram, 0.6))


def test_a_matrix_that_is_no_gram_matrix_is_given_up() -> None:
    gram = torch.full((3, 3), 1e6, dtype=torch.float64).fill_diagonal_(1.0)
    with pytest.raises(SparsifyError) as caught:
        sparsegpt(torch.ones(2, 3), gram, sparsity=0.5)
    assert str(caught.value) == (
        "the input statistics [3, 3] are not positive definite, not even with damping 1000; "
        "calibrate again, with more tokens or in float32"
    )
    with pytest.raises(SparsifyError, match="not even with damping 1;"):
        sparsegpt(torch.ones(2, 3), -torch.eye(3), sparsity=0.5, damping=1e-5)


@pytest.mark.parametrize(
    ("rules", "got"),
    [
        ({}, "none"),
        ({"sparsity": 0.5, "pattern": Pattern(2, 4)}, "sparsity and pattern"),
        ({"pattern": Pattern(2, 4), "mask": torch.ones(2, 4).bool()}, "pattern and mask"),
    ],
)
def test_one_rule_says_what_to_prune(rules: dict[str, Any], got: str) -> None:
    with pytest.raises(OptionError) as caught:
        sparsegpt(torch.ones(2, 4), torch.eye(4), **rules)
    assert str(caught.value) == (
        f"sparsegpt needs exactly one of sparsity, pattern and mask, but got {got}"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0 is not in [0, 1): it is the fraction of zeros"),
        (
            {"pattern": Pattern(1, 3)},
            "pattern 1:3 does not fit the weight: its axis of 4 is no multiple of 3",
        ),
        (
            {"mask": torch.ones(2, 4)},
            "the mask of the weight [2, 4] must be boolean and of its shape, "
            "but it is torch.float32 [2, 4]",
        ),
        (
            {"mask": torch.ones(4).bool()},
            "the mask of the weight [2, 4] must be boolean and of its shape, "
            "but it is torch.bool [4]",
        ),
        (
            {"sparsity": 0.5, "damping": -0.1},
            "damping -0.1 is not a finite number from 0 up, as in 0.01",
        ),
        (
            {"sparsity": 0.5, "damping": math.inf},
            "damping inf is not a finite number from 0 up, as in 0.01",
        ),
        ({"sparsity": 0.5, "block": 0}, "block 0 is no number of columns, as in 128"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        sparsegpt(torch.ones(2, 4), torch.eye(4), **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("weight", "gram", "sentence"),
    [
        (
            torch.ones(4),
            torch.eye(4),
            "the weight must be a matrix [out, in], but its shape is [4]",
        ),
        (
            torch.ones(2, 4),
            torch.eye(2),
            "the weight [2, 4] needs input statistics [4, 4], but [2, 2] came",
        ),
        (
            torch.tensor([[1.0, math.nan]]),
            torch.eye(2),
            "the weight has 1 of 2 values that are NaN or infinite; "
            "mend the model or its calibration data first",
        ),
        (
            torch.ones(1, 2),
            torch.eye(2).fill_diagonal_(math.inf),
            "the tensor of input statistics has 2 of 4 values that are NaN or infinite; "
            "mend the model or its calibration data first",
        ),
    ],
)
def test_tensors_that_cannot_be_used_are_refused(
    weight: Tensor, gram: Tensor, sentence: str
) -> None:
    with pytest.raises(SparsifyError) as caught:
        sparsegpt(weight, gram, sparsity=0.5)
    assert str(caught.value) == sentence
