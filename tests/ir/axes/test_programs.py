"""Random programs of views, splits and joins between two matrices: pruned equals masked."""

import math
import operator
import random

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import fx

from sparsify.errors import OptionError
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.graph import Writer
from sparsify.ir.program import Program, Source
from sparsify.ir.types import propagate
from tests.ir.axes.masked import Masked

aten = torch.ops.aten
STEPS = ("factor", "merge", "swap", "turn", "gate", "repeat", "flip", "halves", "bias")


def _empty() -> tuple[Program, fx.Node, fx.Node]:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((x,))
    program = Program(
        module=fx.GraphModule(torch.nn.Module(), graph),
        sample={"x": torch.ones(7, 5)},
        dynamic={},  # every view says -1 for the batch; fixed types are faster
        source=Source({}, "Random", "tuple", ("y",)),
    )
    propagate(program)
    return program, next(iter(program.graph.nodes)), next(reversed(program.graph.nodes))


def _shape(node: fx.Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape[1:]]


class Maker:
    """Writes one random step after the other; every view states its sizes as constants."""

    def __init__(self, program: Program, writer: Writer, rng: random.Random) -> None:
        self.program, self.writer, self.rng = program, writer, rng

    def weight(self, name: str, *shape: int) -> fx.Node:
        generator = torch.Generator().manual_seed(len(name) + sum(shape))
        return self.writer.parameter(name, torch.randn(shape, generator=generator))

    def view(self, node: fx.Node, shape: list[int]) -> fx.Node:
        return self.writer.call(aten.reshape.default, node, [-1, *shape])

    def step(self, name: str, node: fx.Node) -> fx.Node:
        return getattr(self, name)(node, _shape(node))

    def factor(self, node: fx.Node, shape: list[int]) -> fx.Node:
        dim = self.rng.randrange(len(shape))
        outer = next((n for n in (2, 3) if shape[dim] % n == 0 and shape[dim] > n), 1)
        inner = [outer, shape[dim] // outer]
        return self.view(node, shape[:dim] + self.rng.sample(inner, 2) + shape[dim + 1 :])

    def merge(self, node: fx.Node, shape: list[int]) -> fx.Node:
        if len(shape) < 2:
            return node
        dim = self.rng.randrange(len(shape) - 1)
        return self.view(node, [*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :]])

    def swap(self, node: fx.Node, shape: list[int]) -> fx.Node:
        dims = [self.rng.randrange(len(shape)) - len(shape) for _ in range(2)]
        return self.writer.call(aten.transpose.int, node, *dims)

    def turn(self, node: fx.Node, shape: list[int]) -> fx.Node:
        """Rotate one dimension: the end in front of the start."""
        dim = self.rng.randrange(len(shape))
        if shape[dim] < 2:
            return node
        at = self.rng.randrange(1, shape[dim])
        parts = [
            self.writer.call(aten.slice.Tensor, node, dim + 1, at, 2**63 - 1),
            self.writer.call(aten.slice.Tensor, node, dim + 1, -2 * shape[dim], at),
        ]
        return self.writer.call(aten.cat.default, parts, dim + 1)

    def gate(self, node: fx.Node, shape: list[int]) -> fx.Node:
        if shape[-1] % 2:
            return node
        halves = self.writer.call(aten.chunk.default, node, 2, -1)
        a, b = (self.writer.call(operator.getitem, halves, i) for i in range(2))
        return self.writer.call(aten.mul.Tensor, self.writer.call(aten.silu.default, a), b)

    def repeat(self, node: fx.Node, shape: list[int]) -> fx.Node:
        if math.prod(shape) > 100:
            return node
        dim = self.rng.randrange(len(shape))
        copies = self.rng.choice((2, 3))
        wide = self.writer.call(aten.unsqueeze.default, node, dim + 2)
        sizes = [-1, *shape[: dim + 1], copies, *shape[dim + 1 :]]
        wide = self.writer.call(aten.expand.default, wide, sizes)
        return self.view(wide, [*shape[:dim], shape[dim] * copies, *shape[dim + 1 :]])

    def flip(self, node: fx.Node, shape: list[int]) -> fx.Node:
        """Tie two dimensions of one length to each other."""
        if len(shape) < 2 or shape[-1] != shape[-2]:
            return node
        turned = self.writer.call(aten.transpose.int, node, -1, -2)
        return self.writer.call(aten.add.Tensor, node, turned)

    def halves(self, node: fx.Node, shape: list[int]) -> fx.Node:
        """Pieces of unequal length change places."""
        dim = self.rng.randrange(len(shape))
        if shape[dim] < 3:
            return node
        at = self.rng.randrange(1, shape[dim])
        pieces = self.writer.call(
            aten.split_with_sizes.default, node, [at, shape[dim] - at], dim + 1
        )
        a, b = (self.writer.call(operator.getitem, pieces, i) for i in range(2))
        return self.writer.call(aten.cat.default, [b, a, b], dim + 1)

    def bias(self, node: fx.Node, shape: list[int]) -> fx.Node:
        weight = self.weight(f"bias{len(self.program.graph.nodes)}", *shape)
        return self.writer.call(aten.add.Tensor, node, weight)


def _program(steps: list[str], seed: int) -> Program:
    program, x, end = _empty()
    maker = Maker(program, Writer(program, before=end), random.Random(seed))
    node = maker.writer.call(aten.linear.default, x, maker.weight("first", 24, 5))
    for name in steps:
        node = maker.step(name, node)
    width = math.prod(_shape(node))
    flat = maker.view(maker.writer.call(aten.tanh.default, node), [width])
    y = maker.writer.call(aten.linear.default, flat, maker.weight("last", 4, width))
    end.replace_input_with(x, y)
    program.module.recompile()
    propagate(program)
    return program


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), seed=st.integers(0, 999))
def test_pruned_equals_masked(steps: list[str], seed: int) -> None:
    program = _program(steps, seed)
    rng = random.Random(seed)
    keep, masked = Keep(), Masked(program)
    for group in groups(analyse(program)):
        if not (group.prunable and group.consumers):
            continue
        kept = rng.sample(range(group.size), rng.randint(1, group.size - 1))
        try:
            for consumer in group.consumers:
                masked.remove(consumer, group, kept)
        except OptionError:
            assume(False)  # an axis that is two factors of one input has no single mask
        keep.group(group, kept)
    assume(keep)
    inputs = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 4)]
    with torch.no_grad():
        wanted = [masked.run(x)[0] for x in inputs]
        shrink(program, keep)
        found = [program.module(x)[0] for x in inputs]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for consumer in (c for group in groups(analyse(program)) for c in group.consumers):
        assert consumer.size == program.tensor(consumer.weight).shape[1]
