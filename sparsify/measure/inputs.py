"""Made-up inputs for an exported graph, built from what the graph says it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsify.errors import DataError

_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Shape:
    """How much a run is fed: sequences, tokens in each, and tokens already in the cache."""

    batch: int = 1
    tokens: int = 128
    past: int = 0


def model_inputs(
    wanted: Sequence[Any], shape: Shape, vocabulary: int, seed: int, where: str
) -> dict[str, NDArray[Any]]:
    """Arrays for every input of a graph; equal shape and seed give equal token ids.

    `*input_ids [batch, tokens]` are random below `vocabulary`, `*attention_mask
    [batch, past + tokens]` are ones, `position_ids [batch, tokens]` count on from the cache,
    `token_type_ids` are zeros; `past_key_values.* [batch, heads, past, width]` and other floating
    inputs are normal random numbers of the sizes the graph states.
    Raises DataError for an input of another kind.
    """
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, (shape.batch, shape.tokens))
    feeds = {}
    for entry in wanted:
        kind = _TYPES.get(entry.type)
        value = None if kind is None else _value(entry, shape, ids, generator)
        if value is None:
            raise DataError(
                f"'{where}' takes an input '{entry.name}' of {entry.type}, "
                "which has no made-up value; measure it by hand"
            )
        feeds[entry.name] = np.ascontiguousarray(value.astype(kind))
    return feeds


def _value(
    entry: Any, shape: Shape, ids: NDArray[Any], generator: np.random.Generator
) -> NDArray[Any] | None:
    name = entry.name
    sizes = (shape.batch, shape.tokens)
    if name.endswith("input_ids"):
        return ids
    if name.endswith("attention_mask"):
        return np.ones((shape.batch, shape.past + shape.tokens))
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape.past, shape.past + shape.tokens), sizes)
    if name == "token_type_ids":
        return np.zeros(sizes)
    if entry.type in ("tensor(float)", "tensor(float16)"):
        return generator.standard_normal(_sizes(entry, shape))
    return None


def _sizes(entry: Any, shape: Shape) -> list[int]:
    """Stated sizes; open ones are the batch in front, and behind it the cache, the tokens, or both."""
    rest = shape.past if entry.name.startswith("past") else shape.tokens
    if entry.name.startswith("cross"):  # as long as the mask of what was encoded
        rest += shape.past
    opened = [shape.batch, *[rest] * (len(entry.shape) - 1)]
    return [
        size if isinstance(size, int) else free
        for size, free in zip(entry.shape, opened, strict=True)
    ]
