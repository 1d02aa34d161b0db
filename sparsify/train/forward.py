"""How the loop runs programs: the one that is trained, and its dense twin, up to the head where that helps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import run_segments, run_to
from sparsify.train.chunks import Side
from sparsify.train.program_model import ProgramModel


class Trained(ProgramModel):
    """The program in training: called by tensors of a batch by name, it gives its outputs as a tuple.

    With `headless` it gives what its head reads instead: the states `x [batch, length, hidden]`, the
    weight `[vocabulary, hidden]` as it enters, and the bias where there is one.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.headless = False

    def forward(self, **batch: Tensor) -> tuple[Tensor, ...]:
        """The outputs, or what the head reads."""
        inputs = self.program.complete(batch)
        head = find_head(self.program) if self.headless else None
        if head is None:
            return tuple(self._outputs(inputs))
        if self._recomputing is not None and self.training and torch.is_grad_enabled():
            module, wanted = self.graph_module, head.reads
            return run_segments(module, inputs, wanted=wanted, **self._recomputing)
        return run_to(self.graph_module, inputs, head.reads)


class Teacher:
    """The dense twin, frozen: evaluation mode, no gradients."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def outputs(self, batch: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
        """Its outputs on a batch."""
        return tuple(value.to(device) for value in self.program.run(batch))

    def side(self, batch: Mapping[str, Tensor], device: torch.device) -> Side:
        """What its head makes logits of; the program must have one."""
        with evaluating(self.program.module), torch.no_grad():
            head = find_head(self.program)
            assert head is not None
            found = run_to(self.program.module, self.program.complete(batch), head.reads)
        return side_of(self.program, tuple(value.to(device) for value in found))


def side_of(program: Program, found: tuple[Tensor, ...]) -> Side:
    """The values that a program's head reads as one side of a loss of tokens."""
    head = find_head(program)
    assert head is not None
    x, weight, *rest = found
    bias: Any = rest[0] if rest else None
    return Side(head, x.flatten(0, -2), weight, bias)
