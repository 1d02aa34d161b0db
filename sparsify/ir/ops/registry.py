"""The ops of our own that may stand in a graph beside ATen."""

from torch import Tensor

from sparsify.ir.ops.block_linear import block_embedding as block_embedding
from sparsify.ir.ops.block_linear import block_linear as block_linear
from sparsify.ir.ops.kept_neurons import keep_rows, kept_neurons, zero_omitted
from sparsify.ir.ops.masked_norms import masked_layer_norm as masked_layer_norm
from sparsify.ir.ops.masked_norms import masked_mean as masked_mean
from sparsify.ir.ops.masked_norms import masked_rms_norm as masked_rms_norm
from sparsify.ir.ops.nm_linear import nm_linear as nm_linear
from sparsify.ir.ops.rounding import quantize_activations as quantize_activations
from sparsify.ir.ops.rounding import quantize_weight as quantize_weight
from sparsify.ir.ops.scale_weight import scale_weight as scale_weight


def probe(x: Tensor, *statistics: Tensor) -> Tensor:
    """The identity on `x [..., features]`; `calibrate` fills the statistics while it interprets."""
    return x


# Name in text and on disk -> the function; the loader accepts no other callable. Ops that torch knows
# by their name (packed linears and tables, the two roundings, `sparsify.scale_weight`) need no entry.
OPS = {
    "sparsify.probe": probe,
    "sparsify.kept_neurons": kept_neurons,
    "sparsify.keep_rows": keep_rows,
    "sparsify.zero_omitted": zero_omitted,
    "sparsify.masked_mean": masked_mean,
    "sparsify.masked_layer_norm": masked_layer_norm,
    "sparsify.masked_rms_norm": masked_rms_norm,
}
