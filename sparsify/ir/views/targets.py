"""Targets: the linears that globs select, now, or once an earlier pass has added them."""

from collections.abc import Sequence

import torch
from torch import fx

from sparsify.errors import OptionError, nearest
from sparsify.ir.ops.neighbours import mix_neighbours
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of, suffixes
from sparsify.ir.views.composition import is_composing
from sparsify.ir.views.convolution import convolutions
from sparsify.ir.views.globs import matches, meant
from sparsify.ir.views.linear import Linear, consumers, linear_at, linears, products

aten = torch.ops.aten


def expected(
    program: Program, targets: Sequence[str], ignore: Sequence[str], *, experts: bool = False
) -> list[Linear]:
    """The linears that targets match so far; as `targeted`, whose errors it raises.

    A glob that matches no linear is let through when it would match what passes add to one: it is for
    weights that come, and `targeted` refuses it later if they have not.
    """
    paths = {view.weight for view in (products if experts else linears)(program)}
    coming = {path + suffix for path in paths for suffix in suffixes()}

    def is_late(glob: str) -> bool:
        now = any(matches(path, glob) for path in paths)
        return not now and any(matches(path, glob) for path in coming)

    return targeted(
        program,
        [glob for glob in targets if not is_late(glob)],
        [glob for glob in ignore if not is_late(glob)],
        experts=experts,
    )


def targeted(
    program: Program, targets: Sequence[str], ignore: Sequence[str], *, experts: bool = False
) -> list[Linear]:
    """The linears, with `experts` theirs too, whose weight path matches `targets` and not `ignore`.

    A weight that also serves as an embedding table, or whose output is the program's output (the
    language-model head), is left out unless a glob without wildcards names it; one that a pass has added
    unless a glob matches no weight of the model's own. Raises OptionError when a glob of `targets` matches
    no linear at all, with the nearest path, or none but a head, with its name.
    """
    every = products(program) if experts else linears(program)
    _refuse_unmatched(every, (*targets, *ignore), "linear")
    known = {path for path, _ in program.tensors()}
    added = {view.weight for view in every if feature_of(view.weight, known) is not None}
    heads = {view.weight for view in every if view.weight not in added and is_head(program, view)}
    chosen: set[str] = set()
    for glob in targets:
        chosen |= meant(glob, {view.weight for view in every}, heads, added)
    return [
        view
        for view in every
        if view.weight in chosen and not any(matches(view.weight, g) for g in ignore)
    ]


def targeted_convolutions(
    program: Program, targets: Sequence[str], ignore: Sequence[str]
) -> list[Linear]:
    """The convolutions whose weight path matches `targets` and not `ignore`.

    Raises OptionError when there is none, or a glob matches none, with the nearest path.
    """
    every = convolutions(program)
    if not every:
        raise OptionError(
            "the program has no convolution with a weight of its own; leave of=convolutions out"
        )
    _refuse_unmatched(every, (*targets, *ignore), "convolution")
    return [
        view
        for view in every
        if any(matches(view.weight, glob) for glob in targets)
        and not any(matches(view.weight, glob) for glob in ignore)
    ]


def _refuse_unmatched(every: Sequence[Linear], globs: Sequence[str], what: str) -> None:
    for glob in globs:
        if not any(matches(view.weight, glob) for view in every):
            paths = {view.weight for view in every}
            if not glob.endswith(".weight"):
                paths = {path.removesuffix(".weight") for path in paths}
            raise OptionError(f"the target '{glob}' matches no {what}{nearest(glob, paths)}")


def refuse_shared(
    program: Program,
    views: Sequence[Linear],
    why: str = "a mask or branch on it could not be folded",
    *,
    tables: bool = False,
) -> None:
    """Raise OptionError for a weight that another kind of op reads as well, a tied embedding say.

    A mask or a branch on it could never be folded: the other reader would change. With `tables` an
    embedding may read it.
    """
    read = {node for view in products(program) for node in (view.node, view.reader)}
    for view in views:
        others = (user for user in _readers(program, view.weight) if user not in read)
        if any(not tables or user.target is not aten.embedding.default for user in others):
            raise OptionError(
                f"@{view.weight} is no weight of linears alone (a tied embedding?), so that {why}; "
                "leave it out of targets"
            )


def _readers(program: Program, path: str) -> list[fx.Node]:
    """The nodes that read a tensor, those that compose a weight passed over."""
    found = []
    queue = consumers(program, path)
    while queue:
        node = queue.pop()
        if is_composing(node, path):
            queue += node.users
        else:
            found.append(node)
    return found


def is_head(program: Program, view: Linear) -> bool:
    """Whether a linear produces the program's output or shares its weight with another kind of op.

    A store that is mixed into the output is passed over.
    """
    (output,) = program.graph.find_nodes(op="output")
    outputs = output.all_input_nodes
    outputs += [node.all_input_nodes[0] for node in outputs if node.target is mix_neighbours]
    if view.node in outputs:
        return True
    return any(
        linear_at(program, user) is None and user.target is aten.embedding.default
        for user in consumers(program, view.weight)
    )
