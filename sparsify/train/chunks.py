"""Losses of a language model's tokens behind its head, a chunk of tokens at a time.

    loss = a sum_i CE(z_i, label_i) + sum_i c_i D(z_i, t_i)        z_i = f(W x_i + b)

x [tokens, hidden], W [vocabulary, hidden], t the dense twin's logits. Gradients are taken chunk by chunk on
the way forward, dL/dz in place of z, so that the logits of one chunk are all that ever stand in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.dialogues import IGNORED
from sparsify.ir.run.head import Head
from sparsify.train.losses import Distillation, OfTop
from sparsify.train.top_logits import TopLogits

# Logits at a time: of the products with the head, and of the losses, which are quickest in the cache.
_CHUNK = {"cpu": 1 << 24}
_BLOCK = {"cpu": 1 << 20}
_ELSEWHERE = 1 << 26
_ROWS = 1024  # of the head's gradient at a time


@dataclass(frozen=True)
class Side:
    """What makes the logits of tokens: their states `x [tokens, hidden]`, the head, and its tensors."""

    head: Head
    x: Tensor
    weight: Tensor
    bias: Tensor | None

    def cast(self, dtype: torch.dtype | None) -> "Side":
        """Weight and bias in the type that products are taken in; None: as they are."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Side(self.head, self.x.detach(), self.weight.detach().to(dtype), bias)

    def chunks(self) -> Iterator[slice]:
        """All tokens, so many at a time as may have their logits in memory together."""
        return _slices(0, len(self.x), len(self.weight), _CHUNK, self.x.device)

    def product(self, rows: slice) -> Tensor:
        """`x W^T + b` of some tokens."""
        return functional.linear(self.x[rows].to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Terms:
    """The terms of the loss of every token; `a` scales cross-entropies, `c [tokens]` distances.

    `labels [tokens]` are None without a task loss; `teacher` and `c` without distillation; `stored` stands in
    for the teacher where its logits are on disk. Products with the student's head are taken in `dtype`, in
    the type of its weight where that is None.
    """

    labels: Tensor | None
    a: float
    distance: Distillation | None
    teacher: Side | None
    c: Tensor | None
    dtype: torch.dtype | None
    stored: TopLogits | None = None

    def of(self, logits: Tensor, dense: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
        """The sums over some tokens, of cross-entropies and of distances."""
        task = distilled = logits.new_zeros((), dtype=torch.float32)
        if self.labels is not None:
            task = self.a * functional.cross_entropy(
                logits, self.labels[rows], ignore_index=IGNORED, reduction="sum"
            )
        if self.distance is not None:
            assert self.c is not None
            distilled = (self._distances(logits, dense, rows) * self.c[rows]).sum()
        return task, distilled

    def _distances(self, logits: Tensor, dense: Tensor | None, rows: slice) -> Tensor:
        if self.stored is not None:
            assert isinstance(self.distance, OfTop)
            found = self.stored.rows(rows)
            return self.distance.each_of_top(logits, *found)
        assert self.distance is not None
        assert dense is not None
        return self.distance.each(logits, dense)


def chunked_loss(student: Side, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its parts without gradients: the task's, and the distance to the dense twin."""
    found: tuple[Tensor, Tensor, Tensor] = _Chunked.apply(  # type: ignore[no-untyped-call]
        student.x, student.weight, student.bias, student.head, terms
    )
    return found


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, head: Head, terms: Terms
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The types are chosen here, not by autocast.
        with torch.autocast(x.device.type, enabled=False):
            sums = _Sums(Side(head, x, weight, bias), ctx.needs_input_grad[:3])
            parts = sums.over(terms)
        ctx.found = sums.gradients
        task, distilled = parts.unbind()
        ctx.mark_non_differentiable(task, distilled)
        return task + distilled, task, distilled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, found = float(gradients[0]), ctx.found
        ctx.found = None
        return (*(g if g is None or scale == 1 else g.mul_(scale) for g in found), None, None)


class _Sums:
    """The loss over all chunks, and its gradients for x, W and b, those that are wanted."""

    def __init__(self, student: Side, wanted: tuple[bool, ...]) -> None:
        self.student = student
        values = (student.x, student.weight, student.bias)
        self.gradients = [
            torch.zeros_like(value, memory_format=torch.contiguous_format)
            if value is not None and need
            else None
            for value, need in zip(values, wanted, strict=True)
        ]

    def over(self, terms: Terms) -> Tensor:
        """The sums of cross-entropies and of distances, `[2]`."""
        student = self.student.cast(terms.dtype)
        teacher = None if terms.teacher is None else terms.teacher.cast(None)
        sums = torch.zeros(2, device=student.x.device)
        wanted = any(g is not None for g in self.gradients)
        vocabulary = len(student.weight)
        for rows in student.chunks():
            product = student.product(rows)
            dense = None if teacher is None else teacher.product(rows)
            for block in _slices(rows.start, rows.stop, vocabulary, _BLOCK, product.device):
                here = slice(block.start - rows.start, block.stop - rows.start)
                given = (
                    None if teacher is None or dense is None else teacher.head.after(dense[here])
                )
                sums += self._block(product[here], given, block, terms, wanted)
            if wanted:
                self._add(student, rows, product)
        return sums

    def _block(
        self, product: Tensor, dense: Tensor | None, rows: slice, terms: Terms, wanted: bool
    ) -> Tensor:
        """The two sums over a block of tokens; with `wanted`, the product becomes its gradient."""
        with torch.set_grad_enabled(wanted):
            leaf = product.detach().float().requires_grad_(wanted)
            task, distilled = terms.of(self.student.head.after(leaf), dense, rows)
            if wanted:
                (gradient,) = torch.autograd.grad(task + distilled, leaf)
                product.copy_(gradient.detach())
        return torch.stack([task.detach(), distilled.detach()])

    def _add(self, student: Side, rows: slice, gradient: Tensor) -> None:
        """Add the gradients from that of the product, `[chunk, vocabulary]`."""
        of_x, of_weight, of_bias = self.gradients
        if of_x is not None:
            of_x[rows] = gradient @ student.weight
        if of_weight is not None:
            part = student.x[rows].to(gradient.dtype)
            if part.dtype == of_weight.dtype:
                of_weight.addmm_(gradient.t(), part)
            else:
                # By parts that stay in the cache: a whole product in another type is written out twice.
                parts = torch.split(of_weight, _ROWS), torch.split(gradient, _ROWS, 1)
                for some, of in zip(*parts, strict=True):
                    some += of.t() @ part
        if of_bias is not None:
            of_bias += gradient.sum(0)


def logits_at_a_time(tokens: int, vocabulary: int) -> int:
    """How many logits stand in memory at a time on the CPU, of so many tokens."""
    return min(tokens, max(1, _CHUNK["cpu"] // vocabulary)) * vocabulary


def _slices(
    start: int, stop: int, vocabulary: int, most: dict[str, int], device: torch.device
) -> Iterator[slice]:
    """Tokens from `start` to `stop`, so many at a time as have that many logits."""
    step = max(1, most.get(device.type, _ELSEWHERE) // vocabulary)
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
