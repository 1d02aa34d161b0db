"""What is no packed weight: layouts, weights and bytes that are refused, and the sentence for each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import DataError, OptionError, SparsifyError
from sparsify.tensors.packing import packed as module
from sparsify.tensors.packing.packed import Layout, pack, packable, unpack
from sparsify.tensors.pattern import Pattern

FLOAT = Layout(2, 4, 40, 12)
WIDE = Layout(3, 8, 40, 12)
INT8 = Layout(2, 4, 40, 12, "int8", 32)
INT4 = Layout(1, 8, 40, 12, "int4", 96)


def sound(layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Every group holds N nonzeros at its lowest columns."""
    keep = torch.arange(layout.in_features) % layout.m < layout.n
    weight = torch.where(keep, 1 + torch.arange(layout.in_features) % 7, 0)
    weight = weight.repeat(layout.out_features, 1)
    if not layout.group:
        return weight.float(), None
    return weight.to(torch.int8), torch.ones(layout.out_features, layout.groups).half()


def bytes_of(layout: Layout) -> Tensor:
    weight, scales = sound(layout)
    return pack(weight, layout, scales)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ((4, 4, 8, 8), "pattern 4:4 prunes nothing: N must be below M, as in 2:4"),
        ((0, 8, 8, 8), "pattern 0:8 keeps nothing: N must be at least 1, as in 2:4"),
        (
            (3, 4, 8, 8),
            "pattern 3:4 cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can",
        ),
        (
            (1, 2, 8, 8),
            "pattern 1:2 cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can",
        ),
        (
            (2, 4, 0, 8),
            "a weight [8, 0] cannot be packed: it needs 1 to 16777216 rows and columns",
        ),
        (
            (2, 4, 8, 2**24 + 1),
            "a weight [16777217, 8] cannot be packed: it needs 1 to 16777216 rows and columns",
        ),
        ((2, 4, 8, 8, "int2", 32), "values 'int2' are not float32, int8 or int4"),
        (
            (2, 4, 8, 8, "float32", 32),
            "float32 values have no scales, but group 32 came; leave it at 0",
        ),
        (
            (2, 4, 8, 8, "int8", 0),
            "group 0 does not fit int8 values: 32, 64, 96 or 128 columns share a scale",
        ),
        (
            (2, 4, 8, 8, "int4", 48),
            "group 48 does not fit int4 values: 32, 64, 96 or 128 columns share a scale",
        ),
    ],
)
def test_layouts_that_hold_no_weight(fields: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        Layout(*fields)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_packable_patterns() -> None:
    fits = {(n, m) for m in range(2, 17) for n in range(1, m) if packable(Pattern(n, m))}
    assert fits == {(1, 4), (2, 4), *((n, 8) for n in range(1, 8))}


@pytest.mark.parametrize(
    ("layout", "row", "column", "sentence"),
    [
        (FLOAT, 3, 10, "row 3, columns 8 to 11 hold 3 nonzeros, 2:4 allows 2"),
        (WIDE, 11, 39, "row 11, columns 32 to 39 hold 4 nonzeros, 3:8 allows 3"),
        (INT8, 8, 3, "row 8, columns 0 to 3 hold 3 nonzeros, 2:4 allows 2"),
        (Layout(2, 4, 39, 9), 8, 38, "row 8, columns 36 to 38 hold 3 nonzeros, 2:4 allows 2"),
    ],
)
def test_the_first_crowded_group_is_named(
    layout: Layout, row: int, column: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, scales = sound(layout)
    weight[row, column] = 1
    weight[-1, -1] = 1
    for slab in (module.SLAB, 1):
        monkeypatch.setattr(module, "SLAB", slab)
        with pytest.raises(SparsifyError) as caught:
            pack(weight, layout, scales)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("layout", "value", "found"),
    [
        (FLOAT, math.nan, "is NaN"),
        (INT8, -128, "holds -128, int8 codes go from -127 to 127"),
        (INT4, 8, "holds 8, int4 codes go from -7 to 7"),
        (INT4, -8, "holds -8, int4 codes go from -7 to 7"),
    ],
)
def test_values_that_have_no_code(layout: Layout, value: float, found: str) -> None:
    weight, scales = sound(layout)
    weight[9, 8] = value
    with pytest.raises(SparsifyError) as caught:
        pack(weight, layout, scales)
    assert str(caught.value) == f"row 9, column 8 {found}"


def test_weights_of_another_kind() -> None:
    weight, scales = sound(INT8)
    for wrong in (weight.float(), weight[:, 1:], weight[0]):
        with pytest.raises(SparsifyError) as caught:
            pack(wrong, INT8, scales)
        assert str(caught.value) == (
            "packing 2:4 int8 [12, 40] in groups of 32 takes a weight of torch.int8 [12, 40], "
            f"but {wrong.dtype} {list(wrong.shape)} came"
        )


def test_scales_of_another_kind() -> None:
    weight, scales = sound(INT8)
    assert scales is not None
    for wrong in (scales.float(), scales[:, 1:], scales[0]):
        with pytest.raises(SparsifyError) as caught:
            pack(weight, INT8, wrong)
        assert str(caught.value) == (
            "packing 2:4 int8 [12, 40] in groups of 32 takes scales of torch.float16 [12, 2], "
            f"but {wrong.dtype} {list(wrong.shape)} came"
        )
    scales[3, 1] = math.inf
    with pytest.raises(SparsifyError, match="the tensor of scales has 1 of 24 values that are NaN"):
        pack(weight, INT8, scales)
    with pytest.raises(SparsifyError, match="takes scales, but none came"):
        pack(weight, INT8)
    with pytest.raises(SparsifyError, match="takes no scales, but some came"):
        pack(weight.float(), FLOAT, scales)


@pytest.mark.parametrize("layout", [FLOAT, WIDE, INT8, INT4], ids=str)
def test_bytes_of_another_size(layout: Layout) -> None:
    packed = bytes_of(layout)
    for wrong in (packed[1:], packed[None], packed.to(torch.int16), packed.view(torch.int8)):
        with pytest.raises(DataError) as caught:
            unpack(wrong, layout)
        assert str(caught.value) == (
            f"a packed weight {layout} is uint8 [{layout.nbytes}], "
            f"but {wrong.dtype} {list(wrong.shape)} came"
        )


@pytest.mark.parametrize(
    ("layout", "at", "data", "found"),
    [
        # The first index word of row 0 is 0b...0100: its entries 0 and 1 lie in columns 0 and 1.
        (FLOAT, 0, [0b01000001], "row 0, columns 0 to 3 have indices out of order"),
        (FLOAT, 0, [0b01000000], "row 0, columns 0 to 3 have indices out of order"),
        (WIDE, 5, [0x18], "an index is 8, beyond the 8 columns of its group"),
        # After 32 bytes of words come the values of entry 0; row 12 does not exist.
        (FLOAT, 32, [0, 0, 0xC0, 0x7F], "row 0, column 0 is NaN"),
        (FLOAT, FLOAT.block_bytes + 32 + 4 * 4, [1], "its padding is not zero"),
        # 4 slots: the scales, one vector of low bits, four of values.
        (INT8, 16 + 32, [0x80], "row 0, column 0 holds -128, int8 codes go from -127 to 127"),
        (INT8, 1, [0x7C], "a scale is NaN or infinite"),
        (INT8, INT8.block_bytes + 2 * 4, [1], "its padding is not zero"),
        # 3 slots: the scales, one vector of low bits, one of third bits, two of values.
        (INT4, 16, [0b01000000], "bits are set that belong to no slot"),
        (INT4, 16 + 32, [0b00001000], "bits are set that belong to no slot"),
        (INT4, 16 + 96, [0x98], "bits are set that belong to no slot"),
        (INT4, 16 + 64, [0x80], "row 0, column 0 holds -8, int4 codes go from -7 to 7"),
    ],
)
def test_damage_is_named(layout: Layout, at: int, data: list[int], found: str) -> None:
    packed = bytes_of(layout)
    packed[at : at + len(data)] = torch.tensor(data, dtype=torch.uint8)
    with pytest.raises(DataError) as caught:
        unpack(packed, layout)
    assert str(caught.value) == (
        f"a packed weight {layout} is damaged, or was packed for another layout: {found}"
    )


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([FLOAT, WIDE, INT8, INT4]), st.integers(0, 10**9), st.integers(0, 255))
def test_what_is_unpacked_can_be_packed_again(layout: Layout, at: int, value: int) -> None:
    packed = bytes_of(layout)
    packed[at % layout.nbytes] = value
    try:
        weight, scales = unpack(packed, layout)
    except DataError:
        return
    again, again_scales = unpack(pack(weight, layout, scales), layout)
    assert again.view(torch.int8).equal(weight.view(torch.int8))
    assert scales is None or (again_scales is not None and again_scales.equal(scales))
