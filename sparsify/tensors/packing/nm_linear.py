"""nm_linear: the product with a packed N:M weight in plain torch, what every kernel is held to.

y_to = sum_k W_ok x_tk + b_o        W [out, in] packed, x [..., in]
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from sparsify.errors import SparsifyError
from sparsify.tensors.packing.packed import Layout, dense, unpack
from sparsify.tensors.precision import shape_of
from sparsify.tensors.quantize import round_activations


def nm_linear_reference(x: Tensor, packed: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """Multiply by a packed weight, without any kernel.

    float32 values: the dense product. int8 and int4: activations are rounded too, and
    `y_to = sum_g (scale_og s_tg) float(sum_{k in g} code_ok a_tk) + b_o`, the inner sums exact, the
    outer one in float32 in the order of the groups. A kernel may fuse a multiplication with the
    addition that follows, so it agrees up to float32 rounding.

    Args:
        x: float32 [..., in].
        packed: uint8 [nbytes].
        bias: b, float32 [out], or None.
        layout: of the bytes.

    Returns:
        float32 [..., out].

    Raises:
        DataError: when the bytes are not as many, or such as `pack` never writes.
        SparsifyError: when x is not float32 or does not have `in` columns.

    Source: docs/packed.md, "The product".
    """
    if x.dtype != torch.float32 or x.dim() < 1 or x.shape[-1] != layout.in_features:
        raise SparsifyError(
            f"the product with a packed weight {layout} takes x of torch.float32 "
            f"[..., {layout.in_features}], but {x.dtype} {shape_of(x)} came"
        )
    if not layout.group:
        return linear(x, dense(packed, layout), bias)
    codes, scales = unpack(packed, layout)
    assert scales is not None
    columns = layout.padded - layout.in_features
    weights = torch.split(pad(codes, (0, columns)).double(), layout.group, 1)
    rounded, sizes = round_activations(x, layout.group)
    tokens = torch.split(rounded.double(), layout.group, -1)
    y = x.new_zeros(*x.shape[:-1], layout.out_features)
    for number, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
        # Whole numbers below 2^53: float64 adds them without rounding.
        sums = (token @ weight.T).float()
        y += sizes[..., number, None] * scales[:, number].float() * sums
    return y if bias is None else y + bias
