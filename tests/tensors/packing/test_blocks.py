"""Codes of dense weights as bytes, against a description written down a second time."""

import pytest
import torch

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.packing.blocks import pack_blocks, unpack_blocks
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize(("group", "columns"), [(32, 64), (64, 70), (128, 5)])
def test_what_is_packed_comes_back(values, group, columns):
    bits = {"int8": 8, "int4": 4}[values]
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(0))
    scales = absmax_scales(weight, group, bits)
    codes = round_weight(weight, scales, group, bits)
    packed = pack_blocks(codes, group, values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (6, -(-columns // group), group * bits // 8)
    assert torch.equal(
        unpack_blocks(packed, scales, columns, values), dequantize(codes, scales, group)
    )
    for row in range(6):
        for column in range(columns):
            block, place = divmod(column, group)
            if values == "int8":
                stored = int(packed[row, block, place])
            else:
                byte = int(packed[row, block, place // 2])
                stored = byte >> 4 if place % 2 else byte & 15
            assert stored - 2 ** (bits - 1) == int(codes[row, column])


def test_what_cannot_be_packed():
    codes = torch.zeros(2, 8, dtype=torch.int8)
    with pytest.raises(OptionError, match="a block of 96 columns cannot be packed dense"):
        pack_blocks(codes, 96, "int8")
    with pytest.raises(OptionError, match="values 'float32' are not int8 or int4"):
        pack_blocks(codes, 32, "float32")
    with pytest.raises(SparsifyError, match="a code of 8 is no int4: they end at 7"):
        pack_blocks(codes + 8, 32, "int4")
