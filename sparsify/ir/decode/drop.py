"""What goes out of a decode variant because passes removed it: blocks, and caches nobody reads."""

from dataclasses import replace

import torch
from torch import fx

from sparsify.errors import TraceError
from sparsify.ir.axes.residual import blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.decode.caches import CACHES, output_names, past_name
from sparsify.ir.features.block_mask import (
    add_block_masks,
    block_mask_path,
    settle_block,
)
from sparsify.ir.graph import redirect, sweep
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
    """Take out the caches of layers that no longer lead to the logits, and number the others anew."""
    output = made.graph.output_node()
    results: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    living = _ancestors(results[0])
    inputs = {str(node.target): node for node in made.graph.find_nodes(op="placeholder")}
    layers = len(results) // len(CACHES)
    alive = [i for i in range(layers) if inputs[past_name(i, CACHES[0])] in living]
    if not alive:
        raise TraceError("no attention is left in the program; there is nothing to cache")
    kept = [results[0]]
    for i in alive:
        kept += results[1 + 2 * i : 3 + 2 * i]
    output.args = (tuple(kept),)
    sweep(made)
    other = inputs[past_name(alive[0], CACHES[0])]
    for i in set(range(layers)) - set(alive):
        for kind in CACHES:
            name = past_name(i, kind)
            # What is left of it is its length, which all caches have.
            redirect(inputs[name], other)
            made.graph.erase_node(inputs[name])
            del made.sample[name], made.dynamic[name]
    names = {past_name(i, k): past_name(new, k) for new, i in enumerate(alive) for k in CACHES}
    for old, new in names.items():
        _rename(made, inputs[old], new)
    made.sample = {names.get(name, name): value for name, value in made.sample.items()}
    made.dynamic = {names.get(name, name): value for name, value in made.dynamic.items()}
    made.source = replace(made.source, outputs=output_names(len(alive)))
    made.module.recompile()


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
