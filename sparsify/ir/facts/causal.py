"""Whether a program lets a token see what comes after it."""

import torch
from torch import Tensor, fx

from sparsify.ir.program import Program

_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def masks_bar_future(program: Program) -> bool:
    """Whether every attention has a mask that bars all keys after the query, on the sample inputs.

    A mask is boolean or added to scores, `[.., queries, keys]`; the last key is the last query's. False
    for an attention without a mask, and for a program without attention.
    """
    copy = program.shared()
    calls = [node for node in copy.graph.nodes if node.target is _SDPA]
    masks = [node.args[3] if len(node.args) > 3 else None for node in calls]
    found = [mask for mask in masks if isinstance(mask, fx.Node)]
    if not masks or len(found) < len(masks):
        return False
    (output,) = copy.graph.find_nodes(op="output")
    output.args = (tuple(dict.fromkeys(found)),)
    copy.graph.eliminate_dead_code()
    module = fx.GraphModule(copy.module, copy.graph)
    with torch.no_grad():
        return all(_bars_future(mask) for mask in module(**program.sample))


def _bars_future(mask: Tensor) -> bool:
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    queries, keys = mask.shape[-2:]
    return not bool(seen.triu(keys - queries + 1).any())
