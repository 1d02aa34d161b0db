"""The largest logits of a token's dense twin, and all others as one more: `docs/training.md`.

log p_v = log_softmax(z / T)_v  for the `top` tokens v of largest logit;  p_rest = 1 - sum p_v
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PREFIX = "twin_"
_LEAST = -1e4  # the logarithm of nothing, as float16 can hold it


@dataclass(frozen=True)
class TopLogits:
    """Of each token the ids and `log p` of the largest logits `[..., top]`, and that of the rest `[...]`."""

    ids: Tensor
    logs: Tensor
    rest: Tensor

    def rows(self, rows: slice) -> "TopLogits":
        """Those of some tokens."""
        return TopLogits(self.ids[rows], self.logs[rows], self.rest[rows])

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
    fields = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logs", "rest")
    )
    return TopLogits(*fields)


def top_logits_of(batch: Mapping[str, Tensor]) -> TopLogits | None:
    """What a batch of `StoredData` brings along; None of other data."""
    if f"{PREFIX}ids" not in batch:
        return None
    return TopLogits(*(batch[f"{PREFIX}{name}"] for name in ("ids", "logs", "rest")))


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model takes: neither labels nor what belongs to the twin."""
    return {k: v for k, v in batch.items() if k != "labels" and not k.startswith(PREFIX)}
