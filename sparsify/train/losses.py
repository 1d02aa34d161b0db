"""Losses as functions of outputs: the task's own, and distillation from the dense twin."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.errors import DataError
from sparsify.ir.program import Program

IGNORED = -100


class TaskLoss:
    """The loss of a program's first output against the labels of a batch.

    Logits `[batch, length, vocabulary]` with labels `[batch, length]`: mean cross-entropy in nats a token,
    shifted by one when the program is causal; logits `[batch, classes]` with labels `[batch]`:
    cross-entropy, or squared error for a single float class. Labels of -100 and padding are left out.
    """

    def __init__(self, program: Program) -> None:
        self._causal = is_causal(program)

    def __call__(self, outputs: Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The loss, a scalar.

        Raises DataError when the batch has no labels or labels of another shape.
        """
        labels = batch.get("labels")
        if labels is None:
            raise DataError(
                "the data has no labels; train by distillation only (task=0), or add them"
            )
        logits = outputs[0]
        if logits.shape[:-1] != labels.shape:
            raise DataError(
                f"labels {list(labels.shape)} do not fit the program's output {list(logits.shape)}"
            )
        if labels.is_floating_point():
            return functional.mse_loss(logits.squeeze(-1), labels)
        if labels.dim() == 2:
            labels = self._next_tokens(labels, batch)
        return functional.cross_entropy(
            logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED
        )

    def _next_tokens(self, labels: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
        if not self._causal:
            return labels
        return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def is_causal(program: Program) -> bool:
    """Whether an output position never depends on later tokens; asked of the program itself."""
    ids = program.sample.get("input_ids")
    if ids is None or ids.shape[1] < 2:
        return False
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % int(changed.max() + 2)
    rest = {k: torch.ones_like(v) if k.endswith("mask") else v for k, v in program.sample.items()}
    one = program.run({**rest, "input_ids": ids})[0]
    two = program.run({**rest, "input_ids": changed})[0]
    return one.dim() == 3 and torch.equal(one[:, :-1], two[:, :-1])


def kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """Forward KL divergence from the dense twin, `T^2 * mean_t sum_v p log(p / q)`, in nats.

    `p = softmax(teacher / T)`, `q = softmax(student / T)`; logits `[..., vocabulary]`; `mask [...]` marks the
    positions that count. Source: Hinton et al. 2015, section 2.
    """
    log_q = functional.log_softmax(student.float() / temperature, -1)
    log_p = functional.log_softmax(teacher.float() / temperature, -1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * _mean(each, mask)


def squared(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distance of hidden states, `mean_t ||s - t||^2 / mean_t ||t||^2`; states `[..., features]`."""
    each = (student.float() - teacher.float()).square().sum(-1)
    return _mean(each, mask) / _mean(teacher.float().square().sum(-1), mask)


def _mean(each: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape != each.shape:
        return each.mean()
    weight = mask.to(each.dtype)
    return (each * weight).sum() / weight.sum()
