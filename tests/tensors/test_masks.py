"""Masks against an oracle that sorts Python numbers; ties and odd floats on purpose."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors import masks, threshold
from sparsify.tensors.masks import (
    check_nm,
    keep_across,
    keep_global,
    keep_nm,
    keep_rows,
    keep_top,
    zeros_of,
)
from sparsify.tensors.pattern import Pattern

FEW = st.sampled_from([0.0, -0.0, 1.0, 1.5, -1.0, math.inf, -math.inf, 1e-45, 3e38])
ANY = st.floats(allow_nan=False, width=32)
ENTRY = st.one_of(FEW, ANY)
SPARSITY = st.integers(0, 99).map(lambda percent: percent / 100)
quick = settings(deadline=None, max_examples=60)


def best(values: Sequence[float], count: int) -> list[bool]:
    """The oracle: sort by falling score, then by rising index."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    chosen = set(order[:count])
    return [i in chosen for i in range(len(values))]


@st.composite
def matrices(draw: st.DrawFn, multiple: int = 1) -> Tensor:
    rows, columns = draw(st.integers(1, 5)), multiple * draw(st.integers(1, 6))
    entries = st.lists(ENTRY, min_size=rows * columns, max_size=rows * columns)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.tensor(draw(entries), dtype=dtype).reshape(rows, columns)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 999))
def test_zeros_are_the_floor_of_the_written_decimal(size: int, thousandths: int) -> None:
    exact = math.floor(Fraction(thousandths, 1000) * size)
    assert zeros_of(size, thousandths / 1000) == exact


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 1000))
def test_the_sparsity_of_a_pattern_prunes_whole_groups(n: int, more: int, groups: int) -> None:
    pattern = Pattern(n, n + more)
    assert zeros_of(groups * pattern.m, pattern.sparsity) == groups * more
    assert zeros_of(groups * pattern.m, 1 - n / pattern.m) == groups * more


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_is_a_fraction_below_one(sparsity: float) -> None:
    with pytest.raises(OptionError) as caught:
        keep_global(torch.ones(4), sparsity)
    assert str(caught.value) == (
        f"sparsity {sparsity} is not in [0, 1): it is the fraction of zeros"
    )


@quick
@given(matrices(), st.data())
def test_keep_top_is_the_oracle(scores: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, scores.numel()))
    mask = keep_top(scores, count)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert mask.flatten().tolist() == best(scores.flatten().tolist(), count)


@quick
@given(matrices(), SPARSITY)
def test_keep_global_is_the_oracle(scores: Tensor, sparsity: float) -> None:
    count = scores.numel() - math.floor(Fraction(str(sparsity)) * scores.numel())
    mask = keep_global(scores, sparsity)
    assert mask.flatten().tolist() == best(scores.flatten().tolist(), count)


@quick
@given(matrices(), SPARSITY)
def test_keep_rows_is_the_oracle_on_every_row(scores: Tensor, sparsity: float) -> None:
    inputs = scores.shape[1]
    count = inputs - math.floor(Fraction(str(sparsity)) * inputs)
    assert keep_rows(scores, sparsity).tolist() == [best(r, count) for r in scores.tolist()]


@quick
@given(st.sampled_from(["2:4", "1:4", "4:8", "1:2", "3:5"]), st.data())
def test_keep_nm_is_the_oracle_on_every_group(text: str, data: st.DataObject) -> None:
    pattern = Pattern.parse(text)
    scores = data.draw(matrices(pattern.m))
    mask = keep_nm(scores, pattern)
    groups = scores.reshape(-1, pattern.m).tolist()
    assert mask.reshape(-1, pattern.m).tolist() == [best(g, pattern.n) for g in groups]
    check_nm(mask, pattern)


@quick
@given(st.lists(matrices(), min_size=1, max_size=4), SPARSITY)
def test_keep_across_is_the_oracle_on_all_tensors_in_a_row(
    scores: list[Tensor], sparsity: float
) -> None:
    values = [value for score in scores for value in score.flatten().tolist()]
    count = len(values) - math.floor(Fraction(str(sparsity)) * len(values))
    kept = keep_across(scores, sparsity)
    assert [m.shape for m in kept] == [s.shape for s in scores]
    assert [k for m in kept for k in m.flatten().tolist()] == best(values, count)


def test_float32_and_float64_scores_are_compared_in_float64() -> None:
    # 1 + 2e-9 is 1 in float32: there the first would tie, and win by its place
    narrow, wide = torch.tensor([1.0]), torch.tensor([1 + 2e-9], dtype=torch.float64)
    assert [m.tolist() for m in keep_across([narrow, wide], 0.5)] == [[False], [True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_ranked_exactly(dtype: torch.dtype) -> None:
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert keep_global(scores, 0.6).tolist() == best(scores.tolist(), 16)
    assert keep_rows(scores[None], 0.6)[0].tolist() == best(scores.tolist(), 16)


@pytest.mark.parametrize("seed", range(4))
def test_the_size_of_a_chunk_moves_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 4, (5, 8 * n), generator=generator).float() for n in (1, 3)]

    def choose() -> list[Tensor]:
        both = torch.cat(scores, 1)
        return [*keep_across(scores, 0.45), keep_rows(both, 0.3), keep_nm(both, Pattern(3, 8))]

    whole = choose()
    monkeypatch.setattr(threshold, "CHUNK", 7)
    monkeypatch.setattr(masks, "CHUNK", 7)
    for one, other in zip(whole, choose(), strict=True):
        assert torch.equal(one, other)


def test_among_equals_the_lower_index_is_kept() -> None:
    ones = torch.ones(2, 4)
    assert keep_global(ones, 0.5).tolist() == [[True] * 4, [False] * 4]
    assert keep_rows(ones, 0.5).tolist() == [[True, True, False, False]] * 2
    assert keep_nm(ones, Pattern(1, 4)).tolist() == [[True, False, False, False]] * 2
    assert [m.tolist() for m in keep_across([ones[0], ones[1]], 0.25)] == [
        [True] * 4,
        [True, True, False, False],
    ]


def test_no_sparsity_keeps_all_and_nothing_can_be_empty() -> None:
    assert keep_global(torch.zeros(3), 0.0).all()
    assert keep_rows(torch.zeros(2, 3), 0.0).all()
    assert keep_across([], 0.5) == []
    assert keep_rows(torch.zeros(0, 4), 0.5).shape == (0, 4)
    assert keep_global(torch.zeros(0), 0.5).shape == (0,)


def test_masks_are_cut_off_from_gradients_and_leave_scores_alone() -> None:
    scores = torch.tensor([[3.0, -0.0, 2.0, 1.0]], requires_grad=True)
    before = scores.detach().clone()
    for mask in (keep_global(scores, 0.5), keep_rows(scores, 0.5), keep_nm(scores, Pattern(2, 4))):
        assert mask.tolist() == [[True, False, True, False]]
        assert not mask.requires_grad
    assert torch.equal(scores, before)


def test_a_transposed_view_is_chosen_from_like_its_copy() -> None:
    scores = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).T
    copy = scores.contiguous()
    assert torch.equal(keep_global(scores, 0.4), keep_global(copy, 0.4))
    assert torch.equal(keep_nm(scores, Pattern(2, 4)), keep_nm(copy, Pattern(2, 4)))


@pytest.mark.parametrize(
    "choose",
    [
        lambda s: keep_top(s, 1),
        lambda s: keep_global(s, 0.5),
        lambda s: keep_rows(s, 0.5),
        lambda s: keep_nm(s, Pattern(2, 4)),
    ],
)
def test_nan_is_never_ranked(choose: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(SparsifyError) as caught:
        choose(torch.tensor([[1.0, math.nan, 2.0, 3.0]]))
    assert str(caught.value) == (
        "a score is NaN, so nothing can be chosen; mend the weights or their statistics first"
    )


def test_more_than_there_is_cannot_be_kept() -> None:
    for count in (-1, 9):
        with pytest.raises(OptionError) as caught:
            keep_top(torch.ones(8), count)
        assert str(caught.value) == f"{count} entries cannot be kept of 8"


def test_groups_must_fit_the_row() -> None:
    with pytest.raises(OptionError) as caught:
        keep_nm(torch.ones(4, 6), Pattern(2, 4))
    assert str(caught.value) == (
        "pattern 2:4 does not fit the tensor of scores: its axis of 6 is no multiple of 4"
    )


def test_rows_need_a_matrix() -> None:
    with pytest.raises(SparsifyError) as caught:
        keep_rows(torch.ones(4), 0.5)
    assert str(caught.value) == (
        "the tensor of scores must be a matrix [out, in], but its shape is [4]"
    )


def test_check_nm_names_the_first_group_that_breaks_the_pattern() -> None:
    mask = torch.tensor([True, False, True, False]).repeat(3, 3)
    check_nm(mask, Pattern(2, 4))
    mask[2, 0] = False
    mask[1, 9] = True
    with pytest.raises(SparsifyError) as caught:
        check_nm(mask, Pattern(2, 4))
    assert str(caught.value) == (
        "row 1, group 2 (columns 8 to 11) keeps 3 of 4, but pattern 2:4 keeps 2"
    )
    mask[1, 9] = False
    with pytest.raises(SparsifyError) as caught:
        check_nm(mask, Pattern(2, 4))
    assert str(caught.value) == (
        "row 2, group 0 (columns 0 to 3) keeps 1 of 4, but pattern 2:4 keeps 2"
    )


def test_check_nm_takes_only_masks() -> None:
    with pytest.raises(SparsifyError) as caught:
        check_nm(torch.ones(2, 4), Pattern(2, 4))
    assert str(caught.value) == "the mask [2, 4] must be boolean, but it is torch.float32"
    with pytest.raises(OptionError) as caught:
        check_nm(torch.ones(2, 6, dtype=torch.bool), Pattern(2, 4))
    assert str(caught.value) == (
        "pattern 2:4 does not fit the mask: its axis of 6 is no multiple of 4"
    )
