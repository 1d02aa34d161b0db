"""What goes out of a decode variant because passes removed it: blocks, and caches nobody reads."""

from dataclasses import replace

import torch
from torch import fx

from sparsify.errors import TraceError
from sparsify.ir.axes.residual import blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.decode.caches import GROWING, cache_of, output_names, past_inputs, past_name
from sparsify.ir.features.block_mask import (
    add_block_masks,
    block_mask_path,
    settle_block,
)
from sparsify.ir.graph import output_nodes, redirect, sweep
from sparsify.ir.program import Program


def remove_blocks(made: Program, kind: str, gone: list[str]) -> None:
    """Take out the layers or blocks whose masks stand at these paths in the program."""
    found = {block_mask_path(block): block for block in blocks(analyse(made), kind)}
    order = list(found)
    if lost := [path for path in gone if path not in found]:
        raise TraceError(f"the variant with a cache has no block @{lost[0]} to take out")
    add_block_masks(made, [found[path] for path in sorted(gone, key=order.index)])
    for path in gone:
        settle_block(made, kind, path, stays=False)


def drop_dead_caches(made: Program) -> None:
    """Take out the caches of layers that no longer lead to the logits, and number the others anew.

    What layers read of an encoder is numbered for itself: one may be left of a layer without the other.
    """
    logits, *found = output_nodes(made)
    living = _ancestors(logits)
    inputs = {str(node.target): node for node in made.graph.find_nodes(op="placeholder")}
    names = past_inputs(made)
    presents, handed = found[: len(names)], found[len(names) :]
    handed = [node for node in handed if node in living]
    caches = {name: cache for name in names if (cache := cache_of(name)) is not None}
    alive = list(dict.fromkeys(caches[name][0] for name in names if inputs[name] in living))
    if not alive:
        raise TraceError("no layer that carries anything is left; there is nothing to cache")
    new = {layer: number for number, layer in enumerate(alive)}
    kept = [name for name in names if caches[name][0] in new]
    grown = [x for x, name in zip(presents, names, strict=True) if name in kept]
    made.graph.output_node().args = ((logits, *grown, *handed),)
    sweep(made)
    for name in [name for name in names if name not in kept]:
        _take_out(made, inputs[name], [inputs[other] for other in kept])
    renamed = {name: past_name(new[caches[name][0]], caches[name][1]) for name in kept}
    for old, name in renamed.items():
        _rename(made, inputs[old], name)
    made.sample = {renamed.get(name, name): value for name, value in made.sample.items()}
    made.dynamic = {renamed.get(name, name): value for name, value in made.dynamic.items()}
    numbered = [(new[caches[name][0]], caches[name][1]) for name in kept]
    outputs = output_names(numbered, len(handed) // 2)
    made.source = replace(made.source, outputs=outputs)
    made.module.recompile()


def _take_out(made: Program, cache: fx.Node, others: list[fx.Node]) -> None:
    """Drop an input that is a cache; what is left of it is its length, which all caches that grow have."""
    name = str(cache.target)
    if cache.users:
        like = [node for node in others if _grows(made, node)]
        if not like or not _grows(made, cache):
            raise TraceError(
                f"{name} is gone, and the program still asks for its length, which no other cache has"
            )
        redirect(cache, like[0])
    made.graph.erase_node(cache)
    del made.sample[name], made.dynamic[name]


def _grows(made: Program, cache: fx.Node) -> bool:
    return GROWING in made.dynamic[str(cache.target)].values()


def _rename(made: Program, old: fx.Node, name: str) -> None:
    """Let an input have another name.

    By a node of its own: code made from one whose own name is that of another input would overwrite that.
    """
    if old.target == name:
        return
    with made.graph.inserting_before(old):
        new = made.graph.placeholder(name)
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    made.graph.erase_node(old)


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The nodes whose values, not their sizes alone, lead to a node."""
    found, queue = {node}, [node]
    while queue:
        current = queue.pop()
        sources = () if current.target is torch.ops.aten.sym_size.int else current.all_input_nodes
        for source in sources:
            if source not in found:
                found.add(source)
                queue.append(source)
    return found
