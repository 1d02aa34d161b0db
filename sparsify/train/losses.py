"""Losses as functions of outputs: the task's own, and distillation from the dense twin."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.dialogues import IGNORED
from sparsify.data.sequences import Data
from sparsify.errors import DataError, OptionError
from sparsify.ir.facts.fitting import extent
from sparsify.ir.program import Program
from sparsify.ir.run.unrounded import unrounded_outputs
from sparsify.pretrained.load import class_named

# How much less than what follows a change the rest moves where nothing but rounding moves it.
_LAST_DIGITS, _FEWER_DIGITS = 1e-3, 1e-2


class Distillation(Protocol):
    """A distance of outputs to the dense twin's: a sum over tokens, divided by the size of all of them."""

    # Whether each token is of size 1, so that the size is known before the twin has run.
    per_token: ClassVar[bool]

    def __call__(
        self, outputs: Sequence[Tensor], dense: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """The distance, a scalar; `mask` marks the tokens that count."""

    def each(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The terms of the sum, `[...]`, from first outputs `[..., features]`."""

    def size(self, dense: Sequence[Tensor], mask: Tensor | None) -> float:
        """What the sum over all tokens is divided by."""


@runtime_checkable
class OfTop(Distillation, Protocol):
    """A distance that can do with the largest logits of the dense twin."""

    def each_of_top(self, student: Tensor, ids: Tensor, logs: Tensor, rest: Tensor) -> Tensor:
        """The distance of each token `[...]`: logits `[..., vocabulary]`, ids and log p `[..., top]`."""


def check_labels(program: Program, data: Data, instead: str) -> None:
    """Refuse labels of tokens that the outputs have no logits for; OptionError says what to do `instead`."""
    label = extent(data).label
    if label < 0:
        return
    shape = program.run()[0].shape
    if len(shape) != 3 or shape[-1] <= label:
        raise OptionError(
            f"'{program.source.outputs[0]}' {list(shape)} has no logits for the label {label} of a token; "
            f"{instead}"
        )


class TaskLoss:
    """The loss of a program's outputs against the labels of a batch.

    Logits `[batch, length, vocabulary]` with labels `[batch, length]`: cross-entropy in nats a token,
    shifted by one when the program is causal and writes text; logits `[batch, classes]` with labels
    `[batch]`: cross-entropy. Float labels `[batch]` of a single class, or shaped like the logits:
    squared error, or binary cross-entropy where the config says `multi_label_classification` (as
    several classes do when it says nothing). Start and end logits `[batch, length]` with positions
    `[batch]`: the mean of two cross-entropies. Labels of -100 and, given the mask, padding are left out.
    """

    def __init__(self, program: Program) -> None:
        self.shifted = _writes(program) and output_is_causal(program)
        self._names = program.source.outputs
        self._problem = program.source.config.get("problem_type")

    def __call__(
        self,
        outputs: Sequence[Tensor],
        batch: Mapping[str, Tensor],
        items: Tensor | float | None = None,
    ) -> Tensor:
        """The loss, a scalar: the mean over the labels, or their sum over `items` where that is given.

        `items` is the number of labels of a whole step, of which the batch is a part. Raises DataError
        when the batch has no labels or labels of another shape.
        """
        if "start_positions" in batch and "start_logits" in self._names:
            return self._span(outputs, batch, items)
        labels = batch.get("labels")
        if labels is None:
            raise DataError(
                "the data has no labels; train by distillation only (task=0), or add them"
            )
        logits = outputs[0].float()
        floats = labels.is_floating_point()
        if labels.numel() != logits.numel() if floats else labels.shape != logits.shape[:-1]:
            raise DataError(
                f"labels {list(labels.shape)} do not fit the program's output {list(logits.shape)}"
            )
        if floats:
            return self._of_floats(logits, labels, items)
        if labels.dim() == 2:
            labels = self._next_tokens(labels, batch)
        return _cross_entropy(logits.flatten(0, -2), labels.flatten(), items)

    def _of_floats(self, logits: Tensor, labels: Tensor, items: Tensor | float | None) -> Tensor:
        several = labels.dim() == logits.dim() and logits.shape[-1] > 1
        if several and self._problem in (None, "multi_label_classification"):
            each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            each = (logits.reshape(labels.shape) - labels).square()
        return each.mean() if items is None else each.sum() / _beside(items, each)

    def _span(
        self, outputs: Sequence[Tensor], batch: Mapping[str, Tensor], items: Tensor | float | None
    ) -> Tensor:
        named, losses = dict(zip(self._names, outputs, strict=True)), []
        for side in ("start", "end"):
            logits, at = named[f"{side}_logits"].float(), batch[f"{side}_positions"].flatten()
            outside = (at < 0) | (at >= logits.shape[-1])
            losses.append(_cross_entropy(logits, at.masked_fill(outside, IGNORED), items))
        return (losses[0] + losses[1]) / 2

    def _next_tokens(self, labels: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
        if not self.shifted:
            return labels
        return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The label of each token's logits, `[batch, length]`; None where the loss is another than theirs."""
        labels = batch.get("labels")
        spans = "start_positions" in batch and "start_logits" in self._names
        if spans or labels is None or labels.dim() != 2 or labels.is_floating_point():
            return None
        return self._next_tokens(labels, batch)

    def items(self, batch: Mapping[str, Tensor]) -> float:
        """How many labels of a batch count; of spans, how many a side."""
        if "start_positions" in batch and "start_logits" in self._names:
            length = batch["input_ids"].shape[1]
            sides = (batch[f"{side}_positions"] for side in ("start", "end"))
            return sum(int(((at >= 0) & (at < length)).sum()) for at in sides) / 2
        labels = batch.get("labels")
        if labels is None:
            return 0
        if labels.is_floating_point():
            return labels.numel()
        counted = self._next_tokens(labels, batch) if labels.dim() == 2 else labels
        return int((counted != IGNORED).sum())


def _cross_entropy(logits: Tensor, labels: Tensor, items: Tensor | float | None) -> Tensor:
    how = "mean" if items is None else "sum"
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=how)
    return loss if items is None else loss / _beside(items, loss)


def _beside(items: Tensor | float, value: Tensor) -> Tensor | float:
    return items.to(value.device) if isinstance(items, Tensor) else items


def _writes(program: Program) -> bool:
    """Whether the model is one that continues text, as far as its class is known.

    A causal model may label each token instead, and then nothing is shifted.
    """
    cls = class_named(program.source.model_class)
    return cls is None or bool(cls.can_generate())


def output_is_causal(program: Program) -> bool:
    """Whether an output position never depends on later tokens; asked of the program itself.

    Other ids in the second half must not move the first: by no more than the last digits, since the products
    of experts are taken in other groups then.
    """
    ids = program.sample.get("input_ids")
    if ids is None or ids.shape[1] < 2:
        return False
    half, most = ids.shape[1] // 2, int(ids.max())
    changed = ids.clone()
    changed[:, half:] = (ids[:, half:] + 1) % (most + 1 if most else 2)
    rest = {k: torch.ones_like(v) if k.endswith("mask") else v for k, v in program.sample.items()}
    one, two = (
        unrounded_outputs(program, {**rest, "input_ids": each})[0] for each in (ids, changed)
    )
    if one.dim() != 3:
        return False
    moved = (one - two).abs().float()
    least = _LAST_DIGITS if one.dtype in (torch.float32, torch.float64) else _FEWER_DIGITS
    return bool(moved[:, :half].max() <= least * moved[:, half:].max())


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Forward KL divergence from the dense twin, `T^2 sum_v p log(p / q)`, in nats, of each token.

    `p = softmax(teacher / T)`, `q = softmax(student / T)`; logits `[..., vocabulary]`. Source: Hinton et al.
    2015, section 2.
    """
    log_q = functional.log_softmax(student.float() / temperature, -1)
    log_p = functional.log_softmax(teacher.float() / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_of_top(
    student: Tensor, ids: Tensor, logs: Tensor, rest: Tensor, temperature: float
) -> Tensor:
    """The same where of `p` only the largest entries are known, and the sum of all others, of each token.

    `T^2 (sum_top p log(p / q) + p_rest log(p_rest / q_rest))`: at most what `kl` is, and that where `top` is
    the vocabulary. `ids`, `logs` `[..., top]`, `rest` `[...]`: log p.
    """
    log_q = functional.log_softmax(student.float() / temperature, -1)
    found = (logs.exp() * (logs - log_q.gather(-1, ids))).sum(-1)
    if ids.shape[-1] < log_q.shape[-1]:
        of_rest = log_q.scatter(-1, ids, float("-inf")).logsumexp(-1)
        found = found + rest.exp() * (rest - of_rest)
    return temperature**2 * found


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of hidden states `[..., features]`, `||s - t||^2`, of each token."""
    return (student.float() - teacher.float()).square().sum(-1)


def mean(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over tokens `[...]`, over those that the mask marks where it is of their shape."""
    if mask is None or mask.shape != each.shape:
        return each.mean()
    weight = mask.to(each.dtype)
    return (each * weight).sum() / weight.sum()


def total(each: Tensor, mask: Tensor | None) -> float:
    """The sum over the tokens that `mean` is a mean over."""
    if mask is None or mask.shape != each.shape:
        return float(each.sum())
    return float((each * mask.to(each.dtype)).sum())
