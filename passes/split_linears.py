"""split-linears: a weight of low rank is stored as its factors, and its linear becomes two or three.

    linear(x, W, b)   ->   linear(linear(x, A), B, b)                        W = B A
    linear(x, W, b)   ->   linear(linear(linear(x, A), G), B, b)             W = B G A, A and B of a stack

`W [out, in], A [r, in], G [r, r], B [out, r]`. Split is what has fewer multiply-adds so: `r (out + in)`, and
`r^2` more with a core, below `out in`. The rank r is read off the weight, up to what rounding leaves of
singular values that are zero. Weights that choose-tensors approximated together have A and B in common where
their shapes as `[out, in]` are one: those are stored once, and linears that read one value share the product
with A. Outputs stay up to rounding. Heads, channels and layers are removed before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.features.factors import split_linear
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import FACTORS
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.select.factors import chains
from sparsify.tensors.precision import check_finite

_BARS = (
    "mask.weights mask.channels mask.heads mask.layers mask.blocks mask.hidden mask.experts lora row-scales "
    "quantizers omission probe bias adapters slorb experts merged-experts"
)


@dataclass(frozen=True)
class SplitLinears(Pass):
    """Split every targeted weight of low rank; with `shared` the factors of a stack are stored once.

    With `shared=false` each weight has two factors of its own: fewer multiply-adds, more bytes.
    """

    name: ClassVar[str] = "split-linears"
    moves: ClassVar[Moves] = ROUNDING
    shared: bool = True
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Sets factors; what else stands on a weight is called after it, and comes off first."""
        return effect(sets=[FACTORS], bars=_BARS.split())

    def check(self, program: Program) -> None:
        """Globs must match, linears alone read the weights, and their rounding leaves a rank to be told."""
        for view in self._views(program):
            weight = program.tensor(view.weight)
            check_finite(weight, f"@{view.weight}")
            if weight.dtype in (torch.bfloat16, torch.float16):
                kind = str(weight.dtype).removeprefix("torch.")
                raise OptionError(
                    f"@{view.weight} is {kind}, whose rounding hides small singular values, so that its rank "
                    "cannot be told; load the model in float32"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Split every weight that is cheaper so; returns how many."""
        context.notes.extend(left_whole(program, experts=True))
        views = self._views(program)
        found = chains(program, views, shared=self.shared)
        if not found:
            raise OptionError(
                "no target has a rank so low that its factors take fewer multiply-adds; run choose-tensors "
                "with a lower rank before, or leave this out"
            )
        before = _figures(program, found)
        for view in [view for view in views if view.weight in found]:
            split_linear(program, view, found[view.weight])
        sweep(program)
        after = _figures(program, dict.fromkeys(path for chain in found.values() for path in chain))
        (bytes_before, work_before), (bytes_after, work_after) = before, after
        context.notes.append(
            f"{len(found)} weights split; {bytes_before:,} bytes -> {bytes_after:,} bytes, "
            f"{work_before:,} multiply-adds of a forward -> {work_after:,}"
        )
        return len(found)

    def _views(self, program: Program) -> list[Linear]:
        views = targeted(program, self.targets, self.ignore)
        refuse_shared(program, views, "it is needed whole")
        return views


def _figures(program: Program, paths: Iterable[str]) -> tuple[int, int]:
    """The bytes of some tensors, and the multiply-adds of one token through the whole program."""
    return sum(program.tensor(path).nbytes for path in paths), multiply_adds(program, 1, 1)
