"""Which tokens the masks of a program let a token see: what comes after it, what is far before it."""

import torch
from torch import Tensor, fx

from sparsify.ir.program import Program

_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def masks_bar_future(program: Program) -> bool:
    """Whether every attention has a mask that bars all keys after the query, on the sample inputs.

    A mask is boolean or added to scores, `[.., queries, keys]`; the last key is the last query's. False
    for an attention without a mask, and for a program without attention.
    """
    masks = _masks(program)
    if not masks or not all(isinstance(mask, fx.Node) for mask in masks):
        return False
    found = _computed(program, masks, program.sample)
    return all(not _seen(mask).triu(mask.shape[-1] - mask.shape[-2] + 1).any() for mask in found)


def masks_bar_past(variant: Program, length: int) -> bool:
    """Whether a mask of a decode variant hides something before the last of `length` tokens from it.

    That is so where attention sees a window of places, and the window is shorter.
    """
    sizes = {"batch": 1, "length": 1, "past": length - 1, "length+past": length}
    feeds = {}
    for name, value in variant.sample.items():
        named = variant.dynamic.get(name, {})
        shape = [sizes[named[i]] if i in named else size for i, size in enumerate(value.shape)]
        feeds[name] = value.new_ones(()).expand(
            shape
        )  # one number in memory, however long the cache
    if "position_ids" in feeds:
        feeds["position_ids"] = torch.full((1, 1), length - 1)
    return any(not _seen(mask).all() for mask in _computed(variant, _masks(variant), feeds))


def _masks(program: Program) -> list[object]:
    """The mask of each attention, None where there is none."""
    calls = program.graph.find_nodes(op="call_function", target=_SDPA)
    return [node.args[3] if len(node.args) > 3 else None for node in calls]


def _computed(program: Program, masks: list[object], feeds: dict[str, Tensor]) -> list[Tensor]:
    """The values of masks, each once."""
    copy = program.shared()
    twins = dict(zip(program.graph.nodes, copy.graph.nodes, strict=True))
    wanted = dict.fromkeys(twins[mask] for mask in masks if isinstance(mask, fx.Node))
    copy.graph.output_node().args = (tuple(wanted),)
    copy.graph.eliminate_dead_code()
    module = fx.GraphModule(copy.module, copy.graph)
    with torch.no_grad():
        return list(module(**feeds))


def _seen(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
