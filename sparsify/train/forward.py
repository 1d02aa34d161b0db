"""How the loop runs programs, the trained one and its dense twin: up to the head, where that helps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.device import copied
from sparsify.ir.graph import output_nodes
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import keeping_products, run_segments, run_to
from sparsify.ir.tensor_names import PACKED
from sparsify.train.chunks import Side
from sparsify.train.heap import give_back
from sparsify.train.program_model import ProgramModel
from sparsify.train.settings import Precision, Recompute
from sparsify.train.units import LayerUnits


class Trained(ProgramModel):
    """The program in training: called by tensors of a batch by name, it gives its outputs as a tuple.

    With `headless` it gives what its head reads instead: the states `x [batch, length, hidden]`, the
    weight `[vocabulary, hidden]` as it enters, and the bias where there is one. Behind either stand the
    values of the nodes `watched`.
    """

    def __init__(self, program: Program, recompute: Recompute = "none") -> None:
        super().__init__(program)
        self.headless = False
        self.units: LayerUnits | None = None  # where parameters are cut over ranks
        self.watched: tuple[fx.Node, ...] = ()
        if recompute != "none":
            kept = {"context_fn": keeping_products} if recompute == "selective" else {}
            self.activation_checkpointing_enable(kept)

    def forward(self, **batch: Tensor) -> tuple[Tensor, ...]:
        """The outputs, or what the head reads."""
        inputs = self.program.complete(batch)
        head = find_head(self.program) if self.headless else None
        wanted: list[fx.Node] | None = None
        if head is not None or self.watched:
            wanted = [*(output_nodes(self.program) if head is None else head.reads), *self.watched]
        recomputing = self._recomputing if self.training and torch.is_grad_enabled() else None
        if recomputing is not None or self.units is not None:
            options = {"every": None} if recomputing is None else recomputing
            found = run_segments(
                self.graph_module, inputs, wanted=wanted, units=self.units, **options
            )
            if recomputing is not None and wanted is not None:
                give_back()
            return found
        if wanted is None:
            return tuple(self._outputs(inputs))
        return run_to(self.graph_module, inputs, wanted)


class Teacher:
    """The dense twin, frozen: evaluation mode, no gradients.

    For `precision` bf16 it is a copy whose weights are bfloat16, unless the program is that already or
    holds packed weights, which keep their type.
    """

    def __init__(self, program: Program, precision: Precision = "float32") -> None:
        types = {value.dtype for value in program.module.parameters()}
        self.copied = (
            precision == "bf16" and torch.float32 in types and PACKED not in program.features
        )
        self.program = copied(program, torch.bfloat16) if self.copied else program
        self.model = Trained(self.program)

    def outputs(self, batch: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
        """Its outputs on a batch."""
        return self._given(batch, device, headless=False)

    def side(self, batch: Mapping[str, Tensor], device: torch.device) -> Side:
        """What its head makes logits of; the program must have one."""
        return side_of(self.program, self._given(batch, device, headless=True))

    def _given(
        self, batch: Mapping[str, Tensor], device: torch.device, *, headless: bool
    ) -> tuple[Tensor, ...]:
        self.model.headless = headless
        with evaluating(self.program.module), torch.no_grad():
            found: tuple[Tensor, ...] = self.model(**batch)
        return tuple(value.to(device) for value in found)


def side_of(program: Program, found: tuple[Tensor, ...]) -> Side:
    """The values that a program's head reads as one side of a loss of tokens."""
    head = find_head(program)
    assert head is not None
    x, weight, *rest = found
    bias: Any = rest[0] if rest else None
    return Side(head, x.flatten(0, -2), weight, bias)
