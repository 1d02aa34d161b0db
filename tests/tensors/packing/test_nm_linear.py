"""The reference product against sums of exact fractions, term by term."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout, pack
from sparsify.tensors.quantize import (
    absmax_scales,
    dequantize,
    round_activations,
    round_weight,
)

LAYOUTS = [
    Layout(2, 4, 70, 11),
    Layout(5, 8, 70, 11),
    Layout(1, 4, 70, 11, "int8", 32),
    Layout(3, 8, 70, 11, "int8", 96),
    Layout(2, 4, 70, 11, "int4", 64),
    Layout(7, 8, 70, 11, "int4", 32),
]


def draw(layout: Layout, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight with the pattern, its bytes, a bias and tokens [2, 3, in]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.out_features, layout.in_features)
    keep = torch.arange(layout.in_features) % layout.m < layout.n
    weight = torch.where(keep, torch.randn(shape, generator=generator), 0.0)
    bias = torch.randn(layout.out_features, generator=generator)
    x = torch.randn(2, 3, layout.in_features, generator=generator)
    if not layout.group:
        return weight, pack(weight, layout), bias, x
    scales = absmax_scales(weight, layout.group, layout.bits)
    codes = round_weight(weight, scales, layout.group, layout.bits)
    return dequantize(codes, scales, layout.group), pack(codes, layout, scales), bias, x


def exact(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Multiply in fractions, and round once."""
    rows = [[Fraction(value) for value in row] for row in weight.tolist()]
    first = [Fraction(value) for value in bias.tolist()]
    tokens = [[Fraction(value) for value in token] for token in x.reshape(-1, x.shape[-1]).tolist()]
    sums = [
        [float(b + sum(w * v for w, v in zip(row, token, strict=True))) for row, b in pairs]
        for token in tokens
        for pairs in [list(zip(rows, first, strict=True))]
    ]
    return torch.tensor(sums, dtype=torch.float64).reshape(*x.shape[:-1], len(rows))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_product_is_that_of_the_dense_weight(layout: Layout) -> None:
    weight, packed, bias, x = draw(layout, seed=layout.n)
    y = nm_linear_reference(x, packed, bias, layout)
    assert y.dtype == torch.float32
    assert list(y.shape) == [2, 3, layout.out_features]
    rounded = x.double()
    if layout.group:
        codes, scales = round_activations(x, layout.group)
        wide = scales.double().repeat_interleave(layout.group, -1)
        rounded = (codes.double() * wide)[..., : layout.in_features]
        assert 1e-4 < float((rounded - x).norm() / x.norm()) < 1e-2
    torch.testing.assert_close(y.double(), exact(weight, bias, rounded), rtol=1e-5, atol=1e-5)
    assert nm_linear_reference(x[0, 0], packed, None, layout).allclose(y[0, 0] - bias, atol=1e-5)


def test_inner_sums_are_exact_and_outer_ones_in_the_order_of_the_groups() -> None:
    layout = Layout(7, 8, 96, 1, "int8", 32)
    codes = torch.where(torch.arange(96) % 8 < 7, 127, 0).to(torch.int8)[None]
    scales = torch.tensor([[1.0, 2.0**-12, 2.0**-12]]).half()
    x = torch.full((1, 96), 127.0)
    group = 28 * 127 * 127
    y = nm_linear_reference(x, pack(codes, layout, scales), None, layout)
    small = torch.tensor(group * 2.0**-12)
    assert y.item() == ((torch.tensor(float(group)) + small) + small).item()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_group_without_numbers_gives_nan_for_its_token(value: float) -> None:
    for layout in LAYOUTS[2:]:
        _, packed, bias, x = draw(layout, seed=1)
        x[1, 2, 69] = value
        y = nm_linear_reference(x, packed, bias, layout)
        assert y[1, 2].isnan().all()
        assert y.isnan().sum() == layout.out_features


def test_no_tokens_give_no_rows() -> None:
    for layout in LAYOUTS:
        _, packed, bias, x = draw(layout, seed=1)
        assert list(nm_linear_reference(x[:0], packed, bias, layout).shape) == [0, 3, 11]


def test_the_input_must_be_float32_and_have_the_columns() -> None:
    _, packed, bias, x = draw(LAYOUTS[0], seed=1)
    for wrong in (x[..., 1:], x.double(), x.sum()):
        with pytest.raises(SparsifyError) as caught:
            nm_linear_reference(wrong, packed, bias, LAYOUTS[0])
        assert str(caught.value) == (
            "the product with a packed weight 2:4 float32 [11, 70] takes x of torch.float32 "
            f"[..., 70], but {wrong.dtype} {list(wrong.shape)} came"
        )
