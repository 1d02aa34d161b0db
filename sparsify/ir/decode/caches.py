"""Names, shapes and beginnings of the key/value caches of a decode graph."""

import re
from collections.abc import Mapping

from torch import Tensor

from sparsify.ir.program import Program

CACHES = ("key", "value")
_PAST = re.compile(r"past_key_values_(\d+)_(key|value)")


def past_name(layer: int, kind: str) -> str:
    """The input that holds the keys or values of a layer."""
    return f"past_key_values_{layer}_{kind}"


def output_names(layers: int) -> tuple[str, ...]:
    """The outputs: logits, then the keys and values of each layer, the new ones at their end."""
    return "logits", *(f"present.{layer}.{kind}" for layer in range(layers) for kind in CACHES)


def public_name(name: str) -> str:
    """An input's name as runtimes know it: `past_key_values.N.key`."""
    return _PAST.sub(r"past_key_values.\1.\2", name)


def past_inputs(program: Program) -> list[str]:
    """The inputs of a program that are caches, in order."""
    return [name for name in program.sample if _PAST.fullmatch(name)]


def empty_past(program: Program, batch: int) -> Mapping[str, Tensor]:
    """Caches of length 0 for a batch."""
    return {
        name: program.sample[name].new_zeros(batch, shape[1], 0, shape[3])
        for name in past_inputs(program)
        if (shape := program.sample[name].shape)
    }
