"""The encoder in front of a decoder: what it is given, and the two graphs that one with both parts into.

    the encoder's inputs  ->  cross_key_values.N.key, .value [batch, heads, encoded, size]    once a text
    decoder_input_ids [batch, length], caches, cross_key_values.*, a mask of the encoder's places
        ->  logits, caches                                                                    every step

The cut is where a layer of the decoder has made keys and values of what was encoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import TraceError
from sparsify.ir.decode.caches import CROSS, DECODER_IDS, cross_names, past_inputs
from sparsify.ir.graph import output_nodes, redirect, sources, sweep
from sparsify.ir.program import Program
from sparsify.ir.trace.made_up import vocabulary_of
from sparsify.ir.types import dimension_names

_ENCODED = "encoded"  # the length of what was encoded, where no input has it


@dataclass(frozen=True)
class Given:
    """One input of an encoder: its name, its shape on a sample, which of its sizes vary, its numbers."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[tuple[int, str], ...]
    dtype: torch.dtype

    def made_up(self, config: Any, batch: int, draw: torch.Generator) -> Tensor:
        """A value: ids, numbers, or a mask with padding on the right of its last row."""
        shape = (batch, *self.shape[1:])
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=draw).to(self.dtype)
        if self.name.endswith("mask"):
            mask = torch.ones(shape, dtype=self.dtype)
            mask[-1, ..., -2:] = 0
            return mask
        return torch.randint(0, vocabulary_of(config), shape, generator=draw).to(self.dtype)


def encoder_inputs(program: Program) -> tuple[Given, ...]:
    """What the encoder of a program is given; TraceError where its decoder takes more than ids."""
    if DECODER_IDS not in program.sample:
        raise TraceError(
            "the program was traced without ids for its decoder; there is no text to go on"
        )
    others = [name for name in program.sample if name != DECODER_IDS]
    if strange := [name for name in others if name.startswith("decoder_")]:
        raise TraceError(
            f"the program's decoder takes {strange[0]} beside its ids; trace the model without it"
        )
    return tuple(
        Given(
            name,
            tuple(program.sample[name].shape),
            tuple(program.dynamic.get(name, {}).items()),
            program.sample[name].dtype,
        )
        for name in others
    )


def crosses(program: Program) -> int:
    """How many layers of a decode variant read what was encoded; 0 where there is no encoder."""
    return sum(name.startswith(CROSS) for name in program.source.outputs) // 2


def parted(joint: Program) -> tuple[Program, Program]:
    """The encoder and the decoder of a decode variant; both share its tensors."""
    count = 2 * crosses(joint)
    return _encoder(joint, count), _decoder(joint, count)


def _encoder(joint: Program, count: int) -> Program:
    made = joint.shared()
    others = {DECODER_IDS, *past_inputs(made)}
    _ask_for_sizes(made, [name for name in made.sample if name not in others])
    _let_out(made, output_nodes(made)[-count:], joint.source.outputs[-count:])
    return made


def _decoder(joint: Program, count: int) -> Program:
    made = joint.shared()
    names = cross_names(count // 2)
    called = dimension_names(made)
    *_, last = made.graph.find_nodes(op="placeholder")
    rest, cut = output_nodes(made)[:-count], output_nodes(made)[-count:]
    for name, node, value in zip(names, cut, joint.run()[-count:], strict=True):
        with made.graph.inserting_after(last):
            last = made.graph.placeholder(name)
        last.meta["val"] = node.meta["val"]
        made.sample[name] = value
        made.dynamic[name] = {
            dim: called.get(size.node.expr, _ENCODED)
            for dim, size in enumerate(node.meta["val"].shape)
            if isinstance(size, torch.SymInt)
        }
        redirect(node, last)
    made.graph.output_node().args = (tuple(rest),)
    _ask_for_sizes(made, [DECODER_IDS, *past_inputs(made), *names])
    _let_out(made, rest, joint.source.outputs[:-count])
    return made


def _let_out(made: Program, nodes: Sequence[fx.Node], names: tuple[str, ...]) -> None:
    """Give some nodes out and nothing else, and forget inputs that nobody reads."""
    made.graph.output_node().args = (tuple(nodes),)
    made.source = replace(made.source, outputs=names)
    sweep(made)
    for node in made.graph.find_nodes(op="placeholder"):
        if not node.users:
            name = str(node.target)
            made.graph.erase_node(node)
            del made.sample[name], made.dynamic[name]
    made.module.recompile()


def _ask_for_sizes(made: Program, own: Sequence[str]) -> None:
    """Ask some inputs for the sizes that are asked of others, or worked out from what others have."""
    inputs = made.graph.find_nodes(op="placeholder")
    others = {node for node in inputs if str(node.target) not in own}
    sizes = {
        str(size): (node, dim)
        for node in inputs
        if node not in others
        for dim, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    }
    for node in list(made.graph.nodes):
        size = node.meta.get("val")
        known = isinstance(size, torch.SymInt) and str(size) in sizes
        if known and sources(node) & others:
            with made.graph.inserting_before(node):
                new = made.graph.call_function(torch.ops.aten.sym_size.int, sizes[str(size)])
            new.meta = dict(node.meta)
            redirect(node, new)
