"""How good a model still is: perplexity of text, and how far an encoder's embeddings have moved."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.sequences import Data, batches
from sparsify.errors import DataError, SparsifyError

# From a batch by input name to logits [b, T, V] or hidden states [b, T, H].
Forward = Callable[[dict[str, Tensor]], Tensor]
IGNORED = -100


@dataclass(frozen=True)
class Perplexity:
    """`value = exp(loss)`, `loss` the mean over `tokens` predicted tokens in nats.

    `context` is the number of tokens in a sequence: perplexities of different contexts must not be
    compared.
    """

    value: float
    tokens: int
    context: int
    loss: float


@torch.no_grad()
def perplexity(
    logits_of: Forward, data: Data, batch_size: int = 8, limit: int | None = None
) -> Perplexity:
    """The perplexity `exp(-1/n sum log p(x_t | x_<t))` over the first `limit` sequences.

    `logits_of` maps inputs `[b, T]` to logits `[b, T, V]`; position t predicts token t + 1. Every
    token weighs the same, padded tokens and labels of -100 are left out, the sum is float64.
    Raises DataError when there is no token to predict, SparsifyError when the loss is not finite.
    """
    total, tokens = 0.0, 0
    for batch in _first(data, batch_size, limit):
        targets = _targets(batch)
        logits = logits_of({key: value for key, value in batch.items() if key != "labels"})
        losses = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets.flatten().to(logits.device),
            ignore_index=IGNORED,
            reduction="none",
        )
        total += float(losses.double().sum())
        tokens += int((targets != IGNORED).sum())
        if not math.isfinite(total):
            raise SparsifyError(
                f"the loss became {total} within {tokens} tokens; "
                "the weights hold NaN or have grown too large"
            )
    if tokens == 0:
        raise DataError("the data has no token to predict; every label is padding")
    loss = total / tokens
    return Perplexity(value=to_perplexity(loss), tokens=tokens, context=data.length, loss=loss)


def to_perplexity(loss: float) -> float:
    """`exp(loss)` of a mean loss in nats; infinite beyond 700."""
    # Beyond this exp overflows; such a model has learned nothing anyway.
    return math.exp(loss) if loss < 700 else math.inf


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of hidden states `[b, T, H]` over the tokens a mask `[b, T]` keeps, `[b, H]`."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


@torch.no_grad()
def embed(states_of: Forward, data: Data, batch_size: int = 8, limit: int | None = None) -> Tensor:
    """Embeddings `[n, H]` of the first `limit` sequences: states `[b, T, H]` pooled over tokens."""
    rows = []
    for batch in _first(data, batch_size, limit):
        states = states_of(batch)
        mask = batch.get("attention_mask")
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long)
        rows.append(pool(states.float(), mask.to(states.device)).cpu())
    return torch.cat(rows)


@dataclass(frozen=True)
class Similarity:
    """Cosines between two sets of embeddings, one a sentence: their mean, and the worst."""

    mean: float
    lowest: float
    sentences: int


def cosine(first: Tensor, second: Tensor) -> Similarity:
    """How alike the rows of two sets of embeddings `[n, H]` are; 1 means the same directions.

    Raises SparsifyError when the shapes differ or a cosine is not a number.
    """
    if first.shape != second.shape:
        raise SparsifyError(
            f"embeddings of {list(first.shape)} and {list(second.shape)} cannot be compared; "
            "take them of the same sentences"
        )
    cosines = functional.cosine_similarity(first.double(), second.double(), dim=-1)
    if not bool(cosines.isfinite().all()):
        raise SparsifyError("the embeddings hold NaN or infinite numbers; the weights are damaged")
    return Similarity(float(cosines.mean()), float(cosines.min()), len(cosines))


def _first(data: Data, batch_size: int, limit: int | None) -> Iterator[dict[str, Tensor]]:
    count = len(data) if limit is None else min(limit, len(data))
    if count < 1:
        raise DataError(f"{count} sequences were asked for; ask for 1 or more")
    return batches(data, range(count), batch_size)


def _targets(batch: dict[str, Tensor]) -> Tensor:
    """The token each position but the last must predict `[b, T - 1]`, padding as -100."""
    labels = batch.get("labels", batch["input_ids"])[:, 1:]
    mask = batch.get("attention_mask")
    return labels if mask is None else labels.masked_fill(mask[:, 1:] == 0, IGNORED)
