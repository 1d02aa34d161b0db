"""What a decode variant takes over from its program: tensors, branches, packed weights, biases."""

import torch
from torch import Tensor, fx

from sparsify.ir.features.bias import add_bias, added_biases, fold_bias
from sparsify.ir.features.catalogue import features
from sparsify.ir.features.factors import factored
from sparsify.ir.graph import sweep
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import blocks as blocks_of
from sparsify.ir.tensor_names import packed
from sparsify.ir.views.linear import bias_path, linears, own_bias
from sparsify.ir.views.packed import block_weights, packed_linears


def take_over(made: Program, program: Program) -> None:
    """Give the variant the program's tensors, its biases, and every feature that is carried over."""
    _carry_biases(made, program)
    for feature in features():
        if feature.carry is not None and feature.name in program.features:
            feature.carry(made, program)
    sweep(made)
    for path, value in list(made.tensors()):
        if program.has(path):
            mine = program.tensor(path)
            made.put(path, mine, trainable=False if isinstance(value, torch.nn.Parameter) else None)
    made.module.recompile()
    set_training(made.module, False)


def _carry_biases(made: Program, program: Program) -> None:
    biases = _biases(program)
    for view in linears(made):
        if view.weight in biases and own_bias(view) is None:
            add_bias(made, view)
    for item in added_biases(made):
        with torch.no_grad():
            made.tensor(item.path).copy_(biases[item.linear.weight])
        fold_bias(made, item)


def _biases(program: Program) -> dict[str, Tensor]:
    """The bias of every linear that has one, dense, packed or split, by the weight's path."""
    found = {
        item.weight: program.tensor(str(item.bias.target))
        for item in factored(program)
        if item.bias is not None and item.bias.op == "get_attr"
    }
    for view in linears(program):
        path = bias_path(view)
        if path is not None:
            found[view.weight] = program.tensor(path)
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
