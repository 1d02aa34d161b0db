"""What pruning must equal: the dense program with zeros where removed features are consumed."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.axes.groups import Consumer, Group, Heads, groups, heads
from sparsify.ir.axes.shrink.choice import expand_index, spread
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.tensors.precision import largest_difference

SHAPES = ((2, 13), (1, 7), (3, 20))


class Masked(fx.Interpreter):
    """Runs a program with zeros in chosen features `[in]` of the inputs of chosen nodes."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.masks: dict[fx.Node, tuple[fx.Node, Tensor]] = {}

    def remove(self, consumer: Consumer, of: Group | Heads, kept: Iterable[int]) -> None:
        """Zero what is not kept of a group at one of its consumers."""
        stays = torch.zeros(of.size, dtype=torch.bool)
        stays[list(kept)] = True
        features = spread(expand_index(consumer, of), stays, True)
        x, before = self.masks.get(consumer.node, (consumer.x, torch.tensor(True)))
        self.masks[consumer.node] = (x, before & features)

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node on masked input."""
        if n not in self.masks:
            return super().run_node(n)
        x, features = self.masks[n]
        whole = self.env[x]
        self.env[x] = whole * features
        result = super().run_node(n)
        self.env[x] = whole
        return result


def choose(program: Program, seed: int, kinds: tuple[str, ...]) -> tuple[Keep, Masked]:
    """Random indices of every free group of some kinds and of all heads, different everywhere."""
    rng = random.Random(seed)
    keep, masked = Keep(), Masked(program)
    analysis = analyse(program)
    for group in groups(analysis):
        if group.kind in kinds and group.prunable and group.consumers:
            kept = rng.sample(range(group.size), rng.randint(1, group.size - 1))
            keep.group(group, kept)
            for consumer in group.consumers:
                masked.remove(consumer, group, kept)
    for site in heads(analysis):
        if site.prunable:
            kept = _some_heads(rng, site)
            keep.heads(site, kept)
            for consumer in site.consumers:
                masked.remove(consumer, site, kept)
    return keep, masked


def _some_heads(rng: random.Random, site: Heads) -> list[int]:
    """Fewer KV groups, and in each the same number of query heads, but other ones."""
    stay = rng.sample(range(site.kv_size), max(1, rng.randint(site.kv_size // 2, site.kv_size - 1)))
    count = rng.randint(1, max(1, site.rep_size - 1))
    return [
        group * site.rep_size + place
        for group in stay
        for place in rng.sample(range(site.rep_size), count)
    ]


def batches(program: Program) -> Iterator[dict[str, Tensor]]:
    """Inputs of several batch sizes and lengths, some padded: token ids, or pixels of one size."""
    for batch, length in SHAPES:
        generator = torch.Generator().manual_seed(length)
        if "pixel_values" in program.sample:
            shape = program.sample["pixel_values"].shape[1:]
            yield {"pixel_values": torch.randn(batch, *shape, generator=generator)}
            continue
        ids = torch.randint(3, 60, (batch, length), generator=generator)
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[-1, length - 2 :] = 0
        shorter = {"decoder_input_ids": ids[:, : length - 3].contiguous()}
        yield program.complete({"input_ids": ids, "attention_mask": mask, **shorter})


def outputs(program: Program, run: Any) -> list[Tensor]:
    """The first output of a callable for every batch."""
    with torch.no_grad():
        return [run(*batch.values())[0] for batch in batches(program)]


def prune(program: Program, seed: int, kinds: tuple[str, ...]) -> tuple[Keep, float]:
    """Prune at random; returns what was kept and how far the outputs moved from the masked ones."""
    keep, masked = choose(program, seed, kinds)
    wanted = outputs(program, masked.run)
    shrink(program, keep)
    return keep, largest_difference(wanted, outputs(program, program.module))
