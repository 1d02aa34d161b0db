"""Keys and values before those of every sequence: what a prompt comes to once it is computed.

    attention(q, k, v, mask [.., p + length, p + length])
      ->  attention(q, cat(K, k), cat(V, v), mask[.., p:, :])          K, V [1, heads, p, size]

Masks and positions are still those of sequences that are p longer; all else has a row a token. In the decode
variant K and V stand before the caches that come in, and the caches that go out are without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError, SparsifyError, TraceError
from sparsify.ir.features.feature import Feature
from sparsify.ir.features.prompt import (
    IDS,
    MASK,
    POSITIONS,
    Prompt,
    drop_prompt,
    is_on,
    prompts,
    settle_switch,
)
from sparsify.ir.features.shorten import ATTENTION, END, Shortening, following
from sparsify.ir.graph import Writer, output_nodes, redirect, sources, sweep
from sparsify.ir.lower.attention import unrepeated
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import prefix as paths_of
from sparsify.ir.tensor_names import prompt as prompt_paths
from sparsify.ir.types import propagate
from sparsify.ir.views.linear import linear_at

aten = torch.ops.aten


@dataclass(frozen=True)
class Prefix:
    """What stands before the keys and values of one attention, `[1, heads, p, size]`, by path."""

    key: str
    value: str


@dataclass(frozen=True)
class _Attention:
    """An attention, and the nodes of its keys and values before heads are repeated."""

    node: fx.Node
    key: fx.Node
    value: fx.Node


def prefixes(program: Program) -> list[Prefix]:
    """Every prefix of a program, in the order of its attentions."""
    endings = paths_of("")
    read = [str(node.target) for node in program.graph.find_nodes(op="get_attr")]
    keys, values = ([path for path in read if path.endswith(end)] for end in endings)
    return [Prefix(*pair) for pair in zip(keys, values, strict=True)]


def tokens_before(program: Program) -> int:
    """How many places stand before every sequence, as a prompt or as what it was computed to."""
    rows = [program.tensor(found.rows).shape[0] for found in prompts(program)]
    kept = [program.tensor(found.key).shape[2] for found in prefixes(program)]
    return sum(rows) + max(kept, default=0)


def fold_prompt(program: Program, found: Prompt) -> int:
    """Put what a prompt makes of itself before the keys and values; returns how many attentions have it.

    No attention may let the prompt see what follows. Raises OptionError for one that is written out.
    """
    places, count = _attentions(program), len(program.tensor(found.rows))
    paths = _paths(program, places)
    kept = _computed(program, found, places)
    ids = program.graph.find_nodes(op="placeholder", target=IDS)[0]
    writer = Writer(program, after=found.longer[IDS])
    whole = writer.call(aten.sym_size.int, found.longer[IDS], 1)
    part = writer.call(aten.sym_size.int, ids, 1)
    batch = writer.call(aten.sym_size.int, ids, 0)
    nodes = following(found.joined)
    short = Shortening(program, whole, part, count)
    short.measure_apart([found.embedded, *nodes])
    short.shorten(nodes, _between(places))
    sides = [node for place in places for node in (place.key, place.value)]
    for node, path, value in zip(sides, paths, kept, strict=True):
        after = Writer(program, after=node)
        wide = after.call(aten.expand.default, after.buffer(path, value), [batch, -1, -1, -1])
        joined = after.call(aten.cat.default, [wide, node], 2)
        redirect(node, joined, but=(joined,))
    operand, _, *rest = found.embedded.args
    own = Writer(program, before=found.joined).call(aten.embedding.default, operand, ids, *rest)
    redirect(found.joined, own)
    for cut in dict.fromkeys(found.cuts):
        redirect(cut, cut.all_input_nodes[0])
    settle_switch(program, found)
    sweep(program)
    try:
        propagate(program)
    except Exception as error:
        raise OptionError(
            "an op beside attention mixes the places of tokens, so that what the prompt gives cannot be "
            "kept; leave the prompt unfolded"
        ) from error
    return len(places)


def carry_prompt(made: Program, program: Program) -> None:
    """Begin the caches of a decode variant with what the prompt of a program makes of itself."""
    for found in prompts(program):
        if is_on(program, found):
            _refuse_states(made)
            _before_caches(made, _computed(program, found, _attentions(program)))


def _refuse_states(made: Program) -> None:
    """TraceError for a variant that carries states, which would begin without the prompt."""
    states = [name for name in made.sample if name.startswith("past") and not _grows(made, name)]
    if states:
        raise TraceError(
            f"the program has a prompt of its own, and '{states[0]}' is a state that would begin without it"
        )


def _grows(made: Program, name: str) -> bool:
    return made.dynamic[name].get(2) == "past"


def carry_prefixes(made: Program, program: Program) -> None:
    """Begin the caches of a decode variant with the prefixes of a program."""
    paths = [path for item in prefixes(program) for path in (item.key, item.value)]
    _before_caches(made, [program.tensor(path) for path in paths])


def _attentions(program: Program) -> list[_Attention]:
    found = []
    for node in program.graph.find_nodes(op="call_function", target=ATTENTION):
        found.append(_Attention(node, *(unrepeated(each) or each for each in _operands(node))))
    return found


def _operands(attention: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The keys and values as they enter an attention."""
    key, value = attention.args[1:3]
    assert isinstance(key, fx.Node)
    assert isinstance(value, fx.Node)
    return key, value


def _between(places: Sequence[_Attention]) -> set[fx.Node]:
    """What repeats keys and values for their attention, and so is as long as they are."""
    inside = set[fx.Node]()
    for place in places:
        for start in (place.key, place.value):
            inside |= (set(following(start)) & sources(*_operands(place.node))) - {start}
    return inside


def _paths(program: Program, places: Sequence[_Attention]) -> list[str]:
    """For keys and values of each attention a path after that of the weight that makes them."""
    makers = [_maker(program, node) for place in places for node in (place.key, place.value)]
    paths = [paths_of(maker)[i % 2] for i, maker in enumerate(makers)]
    if len(set(paths)) < len(paths):
        raise OptionError("attentions share the weights of their keys; leave the prompt unfolded")
    return paths


def _maker(program: Program, node: fx.Node) -> str:
    """The weight of the nearest linear that a value follows from."""
    queue, seen = [node], {node}
    for current in queue:
        view = linear_at(program, current)
        if view is not None:
            return view.weight
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    raise OptionError(f"no linear makes the keys at {node.name}, so that they cannot be kept")


def _computed(program: Program, found: Prompt, places: Sequence[_Attention]) -> list[Tensor]:
    """Keys and values `[1, heads, p, size]` of the places of the prompt, in turns, by the program itself."""
    copy = program.shared()
    twins = dict(zip(program.graph.nodes, copy.graph.nodes, strict=True))
    wanted = [twins[node] for place in places for node in (place.key, place.value)]
    copy.graph.output_node().args = (tuple(wanted),)
    copy.graph.eliminate_dead_code()
    module = fx.GraphModule(copy.module, copy.graph)
    count = len(program.tensor(found.rows))
    with torch.no_grad(), evaluating(module):
        return [each[:1, :, :count].clone() for each in module(**program.sample)]


def _before_caches(made: Program, kept: Sequence[Tensor]) -> None:
    """Put keys and values, in turns, before the caches of each layer."""
    inputs = {str(node.target): node for node in made.graph.find_nodes(op="placeholder")}
    pasts = [node for name, node in inputs.items() if _grows(made, name)]
    if len(pasts) != len(kept):
        raise SparsifyError("the variant with a cache has other attentions than the program")
    count, writer = kept[0].shape[2], Writer(made, after=list(inputs.values())[-1])
    batch = writer.call(aten.sym_size.int, inputs[IDS], 0)
    for i, (node, value) in enumerate(zip(pasts, kept, strict=True)):
        stored = writer.buffer(f"layer_{i // 2}{paths_of('')[i % 2]}", value)
        wide = writer.call(aten.expand.default, stored, [batch, -1, -1, -1])
        _lengthen(writer, node, [wide, node], 2)
    ones = writer.call(aten.new_ones.default, inputs[MASK], [batch, count])
    _lengthen(writer, inputs[MASK], [ones, inputs[MASK]], 1)
    if POSITIONS in inputs:
        node = inputs[POSITIONS]
        redirect(node, moved := writer.call(aten.add.Tensor, node, count), but=(moved,))
    propagate(made)
    output = made.graph.output_node()
    for node in _grown(made):
        cut = Writer(made, before=output).call(aten.slice.Tensor, node, 2, count, END)
        output.replace_input_with(node, cut)
    made.module.recompile()


def _grown(made: Program) -> list[fx.Node]:
    """The outputs that are caches as long as the text."""
    named = zip(output_nodes(made), made.source.outputs, strict=True)
    return [node for node, name in named if name.endswith((".key", ".value"))]


def _lengthen(writer: Writer, node: fx.Node, parts: list[fx.Node], dim: int) -> None:
    """Let all that read an input read it behind something else."""
    longer = writer.call(aten.cat.default, parts, dim)
    redirect(node, longer, but=(longer, *parts))


FEATURES = (
    Feature("prompt", prompt_paths(""), prompts, drop_prompt, carry_prompt),
    Feature("prefix", paths_of(""), prefixes, carry=carry_prefixes),
    # That `choose-prompt` has switched the prompt on.
    Feature("prompted", in_values=True),
)
