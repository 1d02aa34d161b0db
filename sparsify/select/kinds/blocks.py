"""Whole layers, and the residual blocks in them: a mask that chooses between a block and its absence."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.residual import Block, blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import (
    add_block_masks,
    block_mask_path,
    block_masks,
    settle_block,
)
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.select.groups import Amount, keep_some
from sparsify.select.influence import influences
from sparsify.select.kinds.kind import Choice, Kind, Units
from sparsify.tensors.masks import keep_top


class Blocks(Kind):
    """`y  ->  where(mask, y, x)`, mask `[1]`, x what y starts from; all of one name are ranked together."""

    scores = ("magnitude", "influence", "activation")
    of_data = frozenset({"influence", "activation"})

    def __init__(self, name: Literal["layers", "blocks"]) -> None:
        self.name = self.family = self._key = name

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse where there is no residual sum, or no target lies in one."""
        self._targeted(program, views)

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Let a mask choose at every block that holds a target."""
        found = self._targeted(program, views)
        add_block_masks(program, found)
        return len(found)

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """By the mean of |W| inside, or by how far a block turns the stream (ShortGPT, Minitron)."""
        found, by = self._masked(program, {view.weight for view in views}), choice.by
        if by.name == "magnitude":
            scores = torch.tensor([_mean_weight(program, block) for block in found.values()])
        else:
            assert by.data is not None
            scores = influences(program, found, by.data, by.indices, by.batch)
        with torch.no_grad():
            for path, stays in zip(found, self._kept(scores, choice.amount), strict=True):
                program.tensor(path).fill_(bool(stays))
        return len(found)

    def most(self, program: Program) -> int:
        """How many there are in all."""
        return len(blocks(analyse(program), self.name))

    def units(self, program: Program) -> list[Units]:
        """All layers; blocks are not learnt."""
        if self.name != "layers":
            return super().units(program)
        stand = {mask.path for mask in block_masks(program, self.name)}
        paths = [block_mask_path(block) for block in blocks(analyse(program), self.name)]
        index = {path: torch.tensor([i]) for i, path in enumerate(paths) if path in stand}
        return [Units(paths[0], len(paths), 1, index)] if paths else []

    def remove(self, program: Program) -> int:
        """Take masked blocks out of the graph; weights that nobody reads any more go with them."""
        kept = {m.path: bool(program.tensor(m.path).all()) for m in block_masks(program, self.name)}
        if not any(kept.values()):
            raise OptionError(f"all {len(kept)} {self.name} would go; keep at least one")
        for path, stays in kept.items():
            settle_block(program, self.name, path, stays=stays)
        gone = [path for path, stays in kept.items() if not stays]
        program.plan.setdefault(self._key, []).append(gone)
        return len(kept)

    def _kept(self, scores: Tensor, amount: Amount) -> Tensor:
        if self.name in amount.sizes:
            return keep_top(scores, amount.sizes[self.name])
        return keep_some(scores, amount.sparsity, amount.step(self.name))

    def _targeted(self, program: Program, views: Sequence[Linear]) -> list[Block]:
        found = blocks(analyse(program), self.name)
        if not found:
            raise OptionError(f"the program has no residual sum x + f(x), so no {self.name} can go")
        chosen = {view.weight for view in views}
        targets = [block for block in found if not chosen.isdisjoint(block.weights)]
        if not targets:
            raise OptionError(
                f"no target lies in one of the {self.name}, as @{found[0].weights[-1]} does"
            )
        return targets

    def _masked(self, program: Program, chosen: set[str]) -> dict[str, Block]:
        """The masked layers or blocks that hold one of the chosen matrices, by the path of the mask."""
        stand = {mask.path for mask in block_masks(program, self.name)}
        every = {block_mask_path(block): block for block in blocks(analyse(program), self.name)}
        found = {
            path: block
            for path, block in every.items()
            if path in stand and not chosen.isdisjoint(block.weights)
        }
        if not found:
            raise OptionError(f"no target lies in masked {self.name}; widen the targets")
        return found


def _mean_weight(program: Program, block: Block) -> float:
    """The mean of |W| over the matrices inside a layer or block."""
    values = [program.tensor(path).detach().float().abs() for path in block.weights]
    total = sum(float(value.sum()) for value in values)
    return total / sum(value.numel() for value in values)
