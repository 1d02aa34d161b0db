"""What a decode variant takes over from its program: tensors, branches, packed weights, biases."""

import torch
from torch import Tensor, fx

from sparsify.ir.features.beside import add_beside
from sparsify.ir.features.bias import add_bias, added_biases, fold_bias
from sparsify.ir.features.packed_dense import block_a_linear, block_a_table
from sparsify.ir.features.packed_nm import pack_linear
from sparsify.ir.graph import sweep
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import adapter, packed, slorb
from sparsify.ir.tensor_names import blocks as blocks_of
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import Linear, linears, own_bias
from sparsify.ir.views.packed import block_weights, packed_linears, unblocked_weight


def take_over(made: Program, program: Program) -> None:
    """Give the variant the program's tensors, its branches, its packed linears and its biases."""
    _add_branches(made, program)
    stored = {view.weight: view for view in packed_linears(program)}
    biases = _biases(program)
    for view in linears(made):
        if view.weight in biases and own_bias(view) is None:
            add_bias(made, view)
    for item in added_biases(made):
        with torch.no_grad():
            made.tensor(item.path).copy_(biases[item.linear.weight])
        fold_bias(made, item)
    for view in linears(made):
        found = stored.get(packed(view.weight))
        if found is not None:
            pack_linear(made, view, program.tensor(found.weight), found.layout)
    _take_blocks(made, program)
    sweep(made)
    for path, value in list(made.tensors()):
        if program.has(path):
            mine = program.tensor(path)
            made.put(path, mine, trainable=False if isinstance(value, torch.nn.Parameter) else None)
    made.module.recompile()
    set_training(made.module, False)


def _add_branches(made: Program, program: Program) -> None:
    """Put a branch beside every linear that has one in the program; weights of either may be packed there."""
    stored = {view.codes: view for view in block_weights(program)}

    def value(path: str) -> Tensor | None:
        if program.has(path):
            return program.tensor(path)
        found = stored.get(blocks_of(path)[0])
        return None if found is None else unblocked_weight(program, found)

    uses: dict[str, list[Linear]] = {}
    for view in linears(made):
        uses.setdefault(view.weight, []).append(view)
    for weight, found in uses.items():
        for paths in (adapter(weight), slorb(weight)):
            pair = {path: tensor for path in paths if (tensor := value(path)) is not None}
            if pair:
                add_beside(made, found, pair)


def _take_blocks(made: Program, program: Program) -> None:
    """Let linears and tables read codes and scales where those of the program do."""
    stored = {view.codes: view for view in block_weights(program)}
    every: list[Linear | Table] = [*linears(made), *tables(made)]
    for view in every:
        found = stored.get(blocks_of(view.weight)[0])
        if found is None:
            continue
        value = (program.tensor(found.codes), program.tensor(found.scales))
        if isinstance(view, Table):
            block_a_table(made, view, value, found.form)
        else:
            block_a_linear(made, view, value, found.form)


def _biases(program: Program) -> dict[str, Tensor]:
    """The bias of every linear that has one, dense or packed, by the weight's path."""
    found = {}
    for view in linears(program):
        bias = own_bias(view)
        if bias is not None and bias.op == "get_attr":
            found[view.weight] = program.tensor(str(bias.target))
    for stored in packed_linears(program):
        place = stored.node.args[2]
        if isinstance(place, fx.Node) and place.op == "get_attr":
            weight = stored.weight.removesuffix(packed(""))
            found[weight] = program.tensor(str(place.target))
    for blocked in block_weights(program):
        if blocked.bias is not None and blocked.bias.op == "get_attr":
            weight = blocked.codes.removesuffix(blocks_of("")[0])
            found[weight] = program.tensor(str(blocked.bias.target))
    return found
