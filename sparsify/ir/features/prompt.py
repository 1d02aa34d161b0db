"""A soft prompt: rows `P [p, d]` that stand before the embeddings of every sequence, and a switch.

    ids            -> cat(id of no padding, p times; ids)             [batch, p + length]
    attention mask -> cat(s, p times; mask)                           s [] is 0 or 1
    positions      -> cat(0 .. p - 1; positions + p s)
    embedding(ids) -> cat(P; embedding(ids)[:, p:])
    outputs        -> outputs[:, p:]

All else in the graph takes its sizes from what it is given, and is p longer. While s is 0 the mask hides the
prompt and positions are counted without it: outputs are those without it, up to the rounding of longer sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError, reason_of
from sparsify.ir.features.shorten import END
from sparsify.ir.features.tail import before_tail
from sparsify.ir.graph import Writer, output_nodes, redirect, sweep
from sparsify.ir.lower.match import RESHAPES
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import prompt as paths_of
from sparsify.ir.types import propagate
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import linear_at

aten = torch.ops.aten
IDS, POSITIONS, SEGMENTS, MASK = "input_ids", "position_ids", "token_type_ids", "attention_mask"


@dataclass(frozen=True)
class Prompt:
    """A prompt in a program: nodes of its rows before those of the tokens, and paths of P and the switch.

    `embedded` are the rows of the longer ids, `joined` what goes on from there; `longer` are the inputs with
    p more places by name, `cuts` the nodes that drop the outputs of these places.
    """

    embedded: fx.Node
    joined: fx.Node
    rows: str
    switch: str
    longer: Mapping[str, fx.Node]
    cuts: tuple[fx.Node, ...]


def table_of(program: Program) -> Table:
    """The table of the program's tokens; OptionError where a prompt cannot stand before what it gives."""
    refusal = _refusal(program)
    found = [table for table in tables(program) if _is_ids(table.ids)]
    if refusal or len(found) != 1:
        raise OptionError(
            f"a prompt cannot stand before sequences: {refusal or 'no one table makes rows of their ids'}"
        )
    return found[0]


def _is_ids(node: fx.Node) -> bool:
    """Whether a node is the ids, perhaps viewed."""
    while node.target in RESHAPES:
        node = node.all_input_nodes[0]
    return node.op == "placeholder" and node.target == IDS


def _refusal(program: Program) -> str:
    """Why the graph has no place for a prompt; empty where it has."""
    inputs = {str(node.target): node for node in program.graph.find_nodes(op="placeholder")}
    length = program.dynamic.get(IDS, {}).get(1)
    if length is None:
        return f"there is no input '{IDS}' of varying length"
    if not {IDS, MASK} <= inputs.keys():
        return "the program takes no attention mask, by which a prompt is hidden until it is chosen"
    for name in inputs:
        if name not in (IDS, MASK, POSITIONS, SEGMENTS) or program.dynamic[name].get(1) != length:
            return f"nothing says what the input '{name}' is for the prompt"
    size = inputs[IDS].meta["val"].shape[1]
    for name, node in zip(program.source.outputs, output_nodes(program), strict=True):
        where = [dim for dim, own in enumerate(node.meta["val"].shape) if own == size]
        if where != [1]:
            return f"the output '{name}' has not one row a token, the prompt's to be left out"
    return ""


def add_prompt(program: Program, rows: Tensor) -> Prompt:
    """Put a prompt `P [p, d]` before every sequence, off at first."""
    table = table_of(program)
    rows_path, switch_path = paths_of(table.weight)
    inputs = {str(node.target): node for node in program.graph.find_nodes(op="placeholder")}
    writer, count = Writer(program, after=list(inputs.values())[-1]), len(rows)
    batch = writer.call(aten.sym_size.int, inputs[IDS], 0)
    switch = writer.buffer(switch_path, torch.zeros((), dtype=torch.long, device=rows.device))
    for name, node in inputs.items():
        readers = set(node.users) - {batch}
        parts = _longer(writer, name, node, [batch, count], switch, _filler(program))
        longer = writer.call(aten.cat.default, parts, 1)
        redirect(node, longer, but=tuple(set(node.users) - readers))
    after = Writer(program, after=table.node)
    own = after.call(aten.slice.Tensor, table.node, 1, count, END)
    before = after.parameter(rows_path, rows)
    wide = after.call(aten.expand.default, before, [batch, count, rows.shape[1]])
    joined = after.call(aten.cat.default, [wide, own], 1)
    redirect(table.node, joined, but=(own, joined))
    for place in _ends(program):
        cut = Writer(program, before=place.reader).call(
            aten.slice.Tensor, place.node, 1, count, END
        )
        place.reader.replace_input_with(place.node, cut)
    try:
        propagate(program)
    except Exception as error:
        raise OptionError(
            f"a prompt cannot stand before sequences: sizes in the graph do not follow the inputs: "
            f"{reason_of(error)[:200]}"
        ) from error
    (found,) = prompts(program)
    return found


def _longer(
    writer: Writer, name: str, node: fx.Node, shape: list[Any], switch: fx.Node, filler: int
) -> list[fx.Node]:
    """What an input has at the places of the prompt, and what it has behind them."""
    if name == MASK:
        value = writer.call(aten.to.dtype, switch, node.meta["val"].dtype)
        return [writer.call(aten.expand.default, value, shape), node]
    if name == POSITIONS:
        ones = writer.call(aten.new_ones.default, node, shape)
        counted = writer.call(aten.sub.Tensor, writer.call(aten.cumsum.default, ones, 1), 1)
        moved = writer.call(aten.mul.Tensor, switch, shape[1])
        return [counted, writer.call(aten.add.Tensor, node, moved)]
    value = writer.call(aten.new_full.default, node, shape, filler if name == IDS else 0)
    return [value, node]


def _filler(program: Program) -> int:
    """An id that does not mean padding: models may count positions by what is none."""
    return 1 if program.source.config.get("pad_token_id") == 0 else 0


@dataclass(frozen=True)
class _End:
    """A value with a row a token that only leads to an output: what reads it last, and the value."""

    reader: fx.Node
    node: fx.Node


def _ends(program: Program) -> list[_End]:
    """Where places are dropped: before the linear that makes an output, else at the output."""
    ends = []
    for node in output_nodes(program):
        head = linear_at(program, before_tail(node)[0])
        out = program.graph.output_node()
        ends.append(_End(out, node) if head is None else _End(head.node, head.x))
    return ends


def prompts(program: Program) -> list[Prompt]:
    """The prompt of a program, if it has one."""
    ending, found = paths_of("")[0], []
    for read in program.graph.find_nodes(op="get_attr"):
        weight = str(read.target).removesuffix(ending)
        if weight != read.target and program.has(paths_of(weight)[1]):
            found.append(_read(program, read, weight))
    return found


def _read(program: Program, read: fx.Node, weight: str) -> Prompt:
    (wide,) = read.users
    (joined,) = wide.users
    own = joined.all_input_nodes[1]
    embedded, count = own.all_input_nodes[0], own.args[2]
    longer = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for user in node.users:
            moved = next(iter(user.users)) if user.target is aten.add.Tensor else user
            if moved.target is aten.cat.default and _size(moved.all_input_nodes[0]) == count:
                longer[str(node.target)] = moved
    cuts = tuple(end.node for end in _ends(program) if end.node.args[1:] == (1, count, END))
    return Prompt(embedded, joined, *paths_of(weight), longer, cuts)


def _size(node: fx.Node) -> Any:
    return node.meta["val"].shape[1]


def drop_prompt(program: Program, found: Prompt) -> None:
    """Take a prompt out again: sequences are as long as they are."""
    inputs = {str(node.target): node for node in program.graph.find_nodes(op="placeholder")}
    for name, longer in found.longer.items():
        redirect(longer, inputs[name])
    redirect(found.joined, found.embedded)
    for cut in dict.fromkeys(found.cuts):
        redirect(cut, cut.all_input_nodes[0])
    sweep(program)
    propagate(program)


def settle_switch(program: Program, found: Prompt) -> None:
    """Leave a prompt that is on no switch to be turned off by."""
    count = len(program.tensor(found.rows))
    inputs = {str(node.target): node for node in program.graph.find_nodes(op="placeholder")}
    shown = found.longer[MASK].all_input_nodes[0]
    writer = Writer(program, before=shown)
    redirect(shown, writer.call(aten.new_ones.default, inputs[MASK], shown.args[1]))
    if POSITIONS in inputs:
        moved = found.longer[POSITIONS].all_input_nodes[1]
        writer = Writer(program, before=moved)
        redirect(moved, writer.call(aten.add.Tensor, inputs[POSITIONS], count))


def is_on(program: Program, found: Prompt) -> bool:
    """Whether the prompt takes part."""
    return bool(program.tensor(found.switch))
