"""Which rounded weights of a program go into blocks, and their codes and scales; refusals name the tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views.composition import WeightQuantizer
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import Linear, composed_weight, out_in, products
from sparsify.ir.views.packed import Blocks
from sparsify.select.weights import require_scales
from sparsify.tensors.packing.blocks import SIZES, pack_blocks, unpack_blocks
from sparsify.tensors.packing.layout import BITS
from sparsify.tensors.quantize import dequantize, round_weight


@dataclass(frozen=True)
class Blocked:
    """A weight as codes uint8 `[out, blocks, bytes]` and scales float16 `[out, blocks]`.

    Of experts `[experts, ...]`.
    """

    value: tuple[Tensor, Tensor]
    form: Blocks

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(tensor.nbytes for tensor in self.value)


def blocked(program: Program) -> dict[str, Blocked]:
    """Every weight that has a quantizer, by path, as it is stored in blocks.

    Raises OptionError for a group that is no block, scales that are not chosen, an input without a
    quantizer, or a weight that is used both as it stands and transposed.
    """
    found: dict[str, Blocked] = {}
    turned: dict[str, bool] = {}
    for view in products(program):
        if view.quantizer is None:
            continue
        if view.input_quantizer is None:
            raise OptionError(
                f"the input of @{view.weight} has no quantizer, and the product rounds it; "
                "leave activations=true in insert-quantizers"
            )
        if turned.setdefault(view.weight, view.transposed) != view.transposed:
            raise OptionError(f"@{view.weight} is used both as it stands and transposed")
        if view.weight not in found:
            weight = out_in(view, composed_weight(program, view))
            found[view.weight] = _blocked(program, view, weight, view.quantizer)
    for table in tables(program):
        if table.quantizer is not None and table.weight not in found:
            weight = program.tensor(table.weight).detach()
            found[table.weight] = _blocked(program, table, weight, table.quantizer)
    if not found:
        raise OptionError("no weight has a quantizer; run insert-quantizers | choose-scales before")
    return found


def _blocked(
    program: Program, view: Linear | Table, weight: Tensor, quantizer: WeightQuantizer
) -> Blocked:
    path, group, scales = view.weight, quantizer.group, program.tensor(quantizer.scales)
    if group not in SIZES:
        raise OptionError(
            f"@{path} has a scale for {group} columns, and blocks have 32, 64 or 128; "
            "choose the group of insert-quantizers among them"
        )
    require_scales(program, view, weight, quantizer)
    # Experts are rounded row by row like any other weight.
    rows, steps = weight.flatten(0, -2), scales.flatten(0, -2)
    codes = round_weight(rows, steps, group, BITS[quantizer.values])
    value = pack_blocks(codes, group, quantizer.values)
    back = unpack_blocks(value, steps, weight.shape[-1], quantizer.values)
    if not torch.equal(back, dequantize(codes, steps, group)):
        raise SparsifyError(f"@{path} does not come back from its blocks as it was")
    value = value.reshape(*weight.shape[:-1], *value.shape[1:])
    return Blocked((value, scales.clone()), Blocks(weight.shape[-1], quantizer.values, group))
