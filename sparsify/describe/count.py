"""What a program weighs: parameters, zeros, bytes and multiply-adds."""

from dataclasses import asdict, dataclass

import torch

from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.facts.weights import linear_weights, other_weights, zeros_in
from sparsify.ir.program import Program
from sparsify.ir.views.packed import packed_entries, packed_linears


@dataclass(frozen=True)
class Counts:
    """The size of a program.

    `parameters` counts every parameter once, tied ones too. `zeros` are those of the weights and of all
    other parameters of the model's own; a branch is a part of its weight. A weight is counted as the graph
    computes it, `Q(mask * (W + c * B A))`, a packed one as the dense one it stands for.
    `linear_parameters` and `linear_zeros` are the same for the weights of linears and experts alone, the
    head of a language model among them. `bytes` is all that is stored, buffers and masks included.
    `multiply_adds` is one forward at `[batch, length]` tokens: zeros of a dense weight counted like
    any number, of a packed one only what it stores; `dense_multiply_adds` counts packed ones whole.
    """

    parameters: int
    zeros: int
    linear_parameters: int
    linear_zeros: int
    bytes: int
    multiply_adds: int
    dense_multiply_adds: int
    batch: int
    length: int

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights of the linears, 0 when there is no linear."""
        return self.linear_zeros / self.linear_parameters if self.linear_parameters else 0.0

    def to_json(self) -> dict[str, int | float]:
        """All fields and the sparsity, as JSON values."""
        return {**asdict(self), "sparsity": self.sparsity}


@torch.no_grad()
def count(program: Program, batch: int = 1, length: int = 128) -> Counts:
    """The counts of a program, its multiply-adds at `[batch, length]` tokens."""
    linear_parameters = linear_zeros = 0
    for _, weight in linear_weights(program):
        linear_parameters += weight.numel()
        linear_zeros += zeros_in(weight)
    zeros = sum(map(zeros_in, other_weights(program)))
    done = multiply_adds(program, batch, length)
    return Counts(
        parameters=count_parameters(program),
        zeros=zeros + linear_zeros,
        linear_parameters=linear_parameters,
        linear_zeros=linear_zeros,
        bytes=sum(tensor.numel() * tensor.element_size() for _, tensor in program.tensors()),
        multiply_adds=done,
        dense_multiply_adds=multiply_adds(program, batch, length, packed_whole=True)
        if packed_linears(program)
        else done,
        batch=batch,
        length=length,
    )


def count_parameters(program: Program) -> int:
    """Entries of all parameters and of packed weights; a tied one counts once, buffers do not."""
    stored = sum(parameter.numel() for parameter in program.module.parameters())
    return stored + sum(packed_entries(program).values())


def count_zeros(program: Program) -> int:
    """Zeros among the effective weights of linears and experts, packed ones too, each weight once."""
    return sum(zeros_in(weight) for _, weight in linear_weights(program))
