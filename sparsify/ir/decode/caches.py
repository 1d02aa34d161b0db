"""Names, shapes and beginnings of what a decode graph carries from step to step.

A layer may hold keys and values of all tokens so far, a short key of each by which some are picked, the last
inputs of a short convolution, and the state of a recurrence. `past_key_values_N_KIND` is what comes in for
layer N, `present.N.KIND` what goes out. A decoder behind an encoder is given `cross_key_values_N_KIND` as
well: the keys and values of what was encoded, which stay.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.ir.program import Program

# Kinds that grow with every token; of the others, a layer with several of one has `conv1`, `conv2` as well.
CACHES = ("key", "value")
INDEX = "index"  # grows as well: `[batch, past, size]`, one for all heads
CONVOLUTION, RECURRENCE = "conv", "state"
GROWING = "past"
_PAST = re.compile(r"past_key_values_(\d+)_([a-z]+\d*)")
CROSS = "cross_key_values"
_CROSS = re.compile(CROSS + r"_(\d+)_([a-z]+)")
# The ids of a decoder behind an encoder, as the model library calls them.
DECODER_IDS = "decoder_input_ids"


@dataclass(frozen=True)
class Held:
    """One tensor that a layer carries: `[batch, *shape]`, None where it is as long as the past."""

    layer: int
    kind: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The input that it is."""
        return past_name(self.layer, self.kind)

    @property
    def dims(self) -> dict[int, str]:
        """Its varying dimensions."""
        grown = {place + 1: GROWING for place, size in enumerate(self.shape) if size is None}
        return {0: "batch", **grown}


def past_name(layer: int, kind: str) -> str:
    """The input that holds what a layer carries."""
    return f"past_key_values_{layer}_{kind}"


def cache_of(name: str) -> tuple[int, str] | None:
    """The layer and the kind of an input that is a cache."""
    found = _PAST.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def cross_name(layer: int, kind: str) -> str:
    """The input that holds keys or values of what was encoded, for one of the layers that read it."""
    return f"{CROSS}_{layer}_{kind}"


def output_names(caches: Iterable[tuple[int, str]], crosses: int = 0) -> tuple[str, ...]:
    """The outputs: logits, then what each layer carries on, of what grows the new at the end.

    Behind an encoder, the keys and values of so many layers that read it come last.
    """
    own = [f"present.{layer}.{kind}" for layer, kind in caches]
    return "logits", *own, *(public_name(name) for name in cross_names(crosses))


def cross_names(layers: int) -> list[str]:
    """The names of what so many layers read of an encoder, in order."""
    return [cross_name(layer, kind) for layer in range(layers) for kind in CACHES]


def public_name(name: str) -> str:
    """An input's name as runtimes know it: `past_key_values.N.key`."""
    return _CROSS.sub(rf"{CROSS}.\1.\2", _PAST.sub(r"past_key_values.\1.\2", name))


def past_inputs(program: Program) -> list[str]:
    """The inputs of a program that are caches, in order."""
    return [name for name in program.sample if cache_of(name)]


def carries_states(program: Program) -> bool:
    """Whether a decode variant carries more than keys and values."""
    found = [cache_of(name) for name in past_inputs(program)]
    return any(cache is not None and cache[1] not in CACHES for cache in found)


def empty_past(program: Program, batch: int) -> Mapping[str, Tensor]:
    """Caches of length 0 and states of zeros for a batch."""
    beginnings = {"batch": batch, GROWING: 0}
    return {
        name: program.sample[name].new_zeros(
            [
                beginnings.get(program.dynamic[name].get(dim, ""), size)
                for dim, size in enumerate(program.sample[name].shape)
            ]
        )
        for name in past_inputs(program)
    }
