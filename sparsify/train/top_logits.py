"""The largest logits of a token's dense twin, and all others as one more: `docs/training.md`.

log p_v = log_softmax(z / T)_v  for the `top` tokens v of largest logit;  p_rest = 1 - sum p_v
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_PREFIX = "twin_"
_LEAST = -1e4  # the logarithm of nothing, as float16 can hold it


class TopLogits(NamedTuple):
    """Of each token the ids and `log p` of the largest logits `[..., top]`, and that of the rest `[...]`."""

    ids: Tensor
    logs: Tensor
    rest: Tensor

    def rows(self, rows: slice) -> "TopLogits":
        """Those of some tokens."""
        return TopLogits(*(value[rows] for value in self))

    def flat(self) -> "TopLogits":
        """Token by token, `[tokens, top]`."""
        return TopLogits(self.ids.flatten(0, -2), self.logs.flatten(0, -2), self.rest.flatten())


def top_logits(logits: Tensor, top: int, temperature: float) -> TopLogits:
    """The largest of logits `[tokens, vocabulary]`, all of them where there are fewer."""
    logs = functional.log_softmax(logits.float() / temperature, -1)
    found, ids = logs.topk(min(top, logs.shape[-1]), -1)
    rest = logs.scatter(-1, ids, float("-inf")).logsumexp(-1)
    return TopLogits(ids, found, rest.clamp(min=_LEAST))


def joined(parts: Sequence[TopLogits]) -> TopLogits:
    """Those of the tokens of all parts, one after the other."""
    return TopLogits(*map(torch.cat, zip(*parts, strict=True)))


def beside(found: TopLogits) -> dict[str, Tensor]:
    """The entries of a batch that they are."""
    return {f"{_PREFIX}{name}": value for name, value in found._asdict().items()}


def top_logits_of(batch: Mapping[str, Tensor]) -> TopLogits | None:
    """What a batch of `StoredData` brings along; None of other data."""
    if f"{_PREFIX}ids" not in batch:
        return None
    return TopLogits(*(batch[f"{_PREFIX}{name}"] for name in TopLogits._fields))


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model takes: neither labels nor what belongs to the twin."""
    return {k: v for k, v in batch.items() if k != "labels" and not k.startswith(_PREFIX)}
