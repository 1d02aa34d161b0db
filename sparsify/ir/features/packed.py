"""Packed weights, N:M or dense in blocks: carried into a variant of the program as they are."""

from sparsify.ir.features.feature import Feature
from sparsify.ir.features.packed_dense import block_a_linear, block_a_table
from sparsify.ir.features.packed_nm import pack_linear
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import PACKED, blocks, packed
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import Linear, products
from sparsify.ir.views.packed import BlockWeight, PackedLinear, block_weights, packed_linears


def packed_weights(program: Program) -> list[PackedLinear | BlockWeight]:
    """Every linear or table that reads packed bytes."""
    return [*packed_linears(program), *block_weights(program)]


def carry_packed(made: Program, program: Program) -> None:
    """Let linears and tables read packed bytes where those of the program do."""
    stored = {view.weight: view for view in packed_linears(program)}
    for view in products(made):
        found = stored.get(packed(view.weight))
        if found is not None:
            pack_linear(made, view, program.tensor(found.weight), found.layout)
    _carry_blocks(made, program)


def _carry_blocks(made: Program, program: Program) -> None:
    stored = {view.codes: view for view in block_weights(program)}
    every: list[Linear | Table] = [*products(made), *tables(made)]
    for view in every:
        found = stored.get(blocks(view.weight)[0])
        if found is None:
            continue
        value = (program.tensor(found.codes), program.tensor(found.scales))
        if isinstance(view, Table):
            block_a_table(made, view, value, found.form)
        else:
            block_a_linear(made, view, value, found.form)


# Their names extend the paths of what they stand for, so that no suffix of theirs is a feature's.
FEATURES = (Feature(PACKED, find=packed_weights, carry=carry_packed),)
