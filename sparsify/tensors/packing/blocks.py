"""blocks: rounded dense weights as bytes, the layout that ONNX Runtime's `MatMulNBits` reads.

    W_ok = scale_og code_ok,   column k in block g = k // G

Bytes `[out, blocks, G bits / 8]`: a code is stored plus `2^(bits - 1)`; of int4 the lower nibble holds the
even column. Columns are filled up to a whole block with codes of 0.
"""

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.packing.layout import BITS, CODES

SIZES = (32, 64, 128)  # columns of a block: powers of two


def block_bytes(group: int, values: str) -> int:
    """Return the bytes of one block of one row.

    Args:
        group: G, columns of a block.
        values: "int8" or "int4".

    Raises:
        OptionError: when such blocks do not exist.
    """
    if group not in SIZES:
        raise OptionError(
            f"a block of {group} columns cannot be packed dense; it has 32, 64 or 128"
        )
    if values not in CODES:
        raise OptionError(f"values {values!r} are not int8 or int4")
    return group * BITS[values] // 8


def pack_blocks(codes: Tensor, group: int, values: str) -> Tensor:
    """Write the codes of a weight.

    Args:
        codes: int8 [out, in], within -q .. q of the values.
        group: G, columns of a block: 32, 64 or 128.
        values: "int8" or "int4".

    Returns:
        uint8 [out, blocks, G bits / 8].

    Raises:
        OptionError: when such blocks do not exist.
        SparsifyError: when a code lies outside the values.
    """
    size = block_bytes(group, values)
    q = CODES[values]
    if int(codes.abs().max()) > q:
        raise SparsifyError(f"a code of {int(codes.abs().max())} is no {values}: they end at {q}")
    out, columns = codes.shape
    blocks = -(-columns // group)
    stored = torch.nn.functional.pad(codes, (0, blocks * group - columns)).int() + q + 1
    if values == "int4":
        stored = stored[:, 0::2] | stored[:, 1::2] << 4
    return stored.to(torch.uint8).view(out, blocks, size)


def unpack_blocks(packed: Tensor, scales: Tensor, columns: int, values: str) -> Tensor:
    """Read the weight that bytes stand for, exact in float32.

    Args:
        packed: uint8 [..., blocks, G bits / 8].
        scales: float16 [..., blocks].
        columns: of the weight.
        values: "int8" or "int4".

    Returns:
        float32 [..., columns].
    """
    if values == "int4":
        packed = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    weight = packed.float().sub_(CODES[values] + 1).mul_(scales.float()[..., None])
    return weight.flatten(-2)[..., :columns].contiguous()
