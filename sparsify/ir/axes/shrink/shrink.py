"""Shrink a program: slice every tensor of the chosen axes and rewrite the size constants."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.groups import Group, Key, adjacent, groups
from sparsify.ir.axes.shrink.choice import Choice
from sparsify.ir.axes.shrink.keep import Keep, checked, keep_to_json
from sparsify.ir.axes.shrink.sizes import patch
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.types import propagate


def shrink(program: Program, keep: Keep, *, boundary: bool = False) -> dict[str, Any]:
    """Remove from the program, in place, what `keep` does not keep of its axes; returns it as JSON.

    Zeroing the removed features at the axes' consumers and then shrinking leaves the outputs where
    they were. Shrinking programs of one model one after the other by the returned values, in order,
    gives the same program again. With `boundary` inputs and outputs that carry an axis shrink with it
    rather than pin it. Raises OptionError for an axis that is unknown, pinned or emptied.
    """
    analysis = analyse(program, boundary=boundary)
    choice = _choice(analysis, keep)
    _select(program, analysis, choice)
    for name, value in program.sample.items():
        axes = analysis.inputs.get(name, [])
        for dim, axis in enumerate(axes):
            if choice.touches(axis):
                value = value.index_select(dim, choice.kept(axis))
        program.sample[name] = value.contiguous()
    for node in program.graph.nodes:
        patch(analysis, node, choice)
    propagate(program)
    program.module.recompile()
    return keep_to_json(keep)


def reorder(program: Program, orders: Mapping[Key, Tensor]) -> None:
    """Put the indices of axes in another order, in place; outputs stay up to rounding.

    `orders` maps the key of a group to `[size]`, the index that goes to each place. The text of the graph
    stays, every tensor of the axes is rearranged. Raises OptionError for an axis unknown or pinned, and for
    what is no permutation.
    """
    analysis = analyse(program)
    by_key = _places(analysis)
    choice = Choice()
    for key, order in orders.items():
        group = _free(by_key.get(key), key)
        if order.sort().values.tolist() != list(range(group.size)):
            raise OptionError(
                f"the order of the {group.kind} at {key} is no permutation of {group.size}"
            )
        choice.leaves[group.leaf] = order
    _select(program, analysis, choice)
    if orders:
        # Entries of a weight now stand elsewhere than in any earlier copy of the program.
        program.plan["reordered"] = program.plan.get("reordered", 0) + 1


def _select(program: Program, analysis: Analysis, choice: Choice) -> None:
    """Rearrange every tensor along the axes that a choice touches."""
    for path, axes in analysis.tensors.items():
        old = program.tensor(path)
        new = old.detach()
        for dim, axis in enumerate(axes):
            if choice.touches(axis):
                new = new.index_select(dim, choice.kept(axis).to(new.device))
        if any(choice.touches(axis) for axis in axes):
            _store(program, path, old, new.contiguous())


def _store(program: Program, path: str, old: Tensor, new: Tensor) -> None:
    if isinstance(old, torch.nn.Parameter):
        program.put(path, new, trainable=old.requires_grad)
    else:
        program.put(path, new)


def _places(analysis: Analysis) -> dict[Key, Group]:
    """The group at each place of a tensor: a key made on a program with other tensors is found, too."""
    return {
        (member.path, member.dim, number): group
        for group in groups(analysis)
        for member in group.members
        for number, leaf in enumerate(member.axis.leaves())
        if leaf.root() is group.leaf.root()
    }


def _choice(analysis: Analysis, keep: Keep) -> Choice:
    by_key = _places(analysis)
    choice = Choice()
    for key, kept in keep.leaves.items():
        group = _free(by_key.get(key), key)
        _choose(choice, group.leaf, checked(kept, group.size, group.kind, key, group.least))
    for (kv_key, rep_key), table in keep.joint.items():
        kv, rep = _free(by_key.get(kv_key), kv_key), _free(by_key.get(rep_key), rep_key)
        for path, axes in analysis.tensors.items():
            if not all(adjacent(axis, kv.leaf, rep.leaf) for axis in axes):
                raise OptionError(f"'{path}' does not store its heads KV group by KV group")
        table = sorted(table)
        rows = [checked(places, rep.size, rep.kind, rep_key) for _, places in table]
        if len({len(row) for row in rows}) > 1:
            raise OptionError(f"the kept KV groups of {kv_key} keep different numbers of heads")
        _choose(choice, kv.leaf, checked([g for g, _ in table], kv.size, kv.kind, kv_key))
        # Which heads stay differs by group: by itself the axis of heads only knows how many.
        _choose(choice, rep.leaf, list(range(len(rows[0]))))
        choice.joint[kv.leaf] = (rep.leaf, torch.tensor(rows))
    return choice


def _choose(choice: Choice, leaf: Axis, kept: list[int]) -> None:
    if leaf in choice.leaves:
        raise OptionError("the plan says twice what stays of one axis")
    choice.leaves[leaf] = torch.tensor(kept)


def _free(group: Group | None, key: tuple[str, int, int]) -> Group:
    if group is None:
        raise OptionError(f"the program has no axis {key}; the plan was made for another one")
    if group.pins:
        reasons = "; ".join(group.pins[:3])
        raise OptionError(f"the {group.kind} at {key} cannot be pruned: {reasons}")
    return group
