import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import DataError, SparsifyError
from sparsify.tensors.packing.bits import pack_bits, unpack_bits

SHAPES = st.lists(st.integers(0, 7), max_size=4)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    shape = draw(SHAPES)
    size = math.prod(shape)
    bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(bits, dtype=torch.bool).reshape(shape)


@settings(deadline=None)
@given(masks())
def test_unpack_inverts_pack(mask: Tensor) -> None:
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert list(packed.shape) == [math.ceil(mask.numel() / 8)]
    back = unpack_bits(packed, mask.shape)
    assert back.dtype == torch.bool
    assert back.shape == mask.shape
    assert torch.equal(back, mask)


@settings(deadline=None)
@given(masks())
def test_the_layout_is_that_of_a_little_endian_number(mask: Tensor) -> None:
    number = sum(1 << i for i, bit in enumerate(mask.flatten().tolist()) if bit)
    assert bytes(pack_bits(mask).tolist()) == number.to_bytes(math.ceil(mask.numel() / 8), "little")


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_pack_inverts_unpack(data: bytes) -> None:
    packed = torch.tensor(list(data), dtype=torch.uint8)
    assert torch.equal(pack_bits(unpack_bits(packed, [8 * len(data)])), packed)


def test_a_transposed_mask_is_packed_row_by_row() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert pack_bits(mask).tolist() == [0b011101]
    assert pack_bits(mask.T).tolist() == [0b011011]


def test_an_unpacked_mask_fills_its_storage() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert unpack_bits(pack_bits(mask), mask.shape).untyped_storage().nbytes() == mask.numel()


def test_only_masks_are_packed() -> None:
    with pytest.raises(SparsifyError) as caught:
        pack_bits(torch.ones(2, 3, dtype=torch.uint8))
    assert str(caught.value) == "the mask [2, 3] must be boolean, but it is torch.uint8"


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        (torch.zeros(1, dtype=torch.uint8), "torch.uint8 [1]"),
        (torch.zeros(3, dtype=torch.uint8), "torch.uint8 [3]"),
        (torch.zeros(2, dtype=torch.int8), "torch.int8 [2]"),
        (torch.zeros(2, 1, dtype=torch.uint8), "torch.uint8 [2, 1]"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(packed: Tensor, found: str) -> None:
    with pytest.raises(DataError) as caught:
        unpack_bits(packed, [3, 3])
    assert str(caught.value) == f"a packed mask of shape [3, 3] is uint8 [2], but {found} came"


def test_bits_after_the_last_entry_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        unpack_bits(torch.tensor([255, 2], dtype=torch.uint8), (3, 3))
    assert str(caught.value) == (
        "a packed mask of shape [3, 3] has bits set after its 9 entries: "
        "it was packed for another shape, or is damaged"
    )
