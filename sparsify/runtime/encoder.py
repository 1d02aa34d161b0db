"""The encoder of an exported model: run once, and what a decoder reads of it in every step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.runtime.caches import Array
from sparsify.runtime.session import onnxruntime_session, run_session

ENCODER = "encoder.onnx"
IDS, MASK, DECODER_IDS = "input_ids", "attention_mask", "decoder_input_ids"


class Encoder:
    """An opened encoder; `decoder` is the session of what reads it."""

    def __init__(self, path: Path, decoder: Any, threads: int) -> None:
        self._session = onnxruntime_session(path, threads=threads, verify=False)
        self.inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._read = {entry.name for entry in decoder.get_inputs()}

    @property
    def reads_text(self) -> bool:
        """Whether it is given token ids."""
        return IDS in self.inputs

    def encoded(self, given: Mapping[str, Tensor]) -> dict[str, Array]:
        """What the decoder reads in every step: keys and values, and a mask if it asks for one.

        `given` holds the encoder's inputs by name; a missing mask is ones. Raises OptionError for others.
        """
        feeds = {name: np.ascontiguousarray(value.numpy()) for name, value in given.items()}
        if MASK in self.inputs and MASK not in feeds and IDS in feeds:
            feeds[MASK] = np.ones_like(feeds[IDS])
        if feeds.keys() != self.inputs.keys():
            raise OptionError(
                f"the model is given {', '.join(given) or 'nothing'}; it takes {', '.join(self.inputs)}"
            )
        for name, entry in self.inputs.items():
            _check_shape(name, feeds[name], entry.shape)
        made = {**feeds, **run_session(self._session, feeds)}
        return {name: value for name, value in made.items() if name in self._read}


def first_ids(said: Sequence[Mapping[str, Any]], begin: Sequence[int] | None) -> list[int]:
    """The ids that a decoder begins with: those given, or the one that the first of some configs says.

    Raises OptionError where none does.
    """
    if begin:
        return list(begin)
    for name in ("decoder_start_token_id", "bos_token_id"):
        for entries in said:
            if isinstance(entries.get(name), int):
                return [int(entries[name])]
    raise OptionError("no config says which id the decoder begins with; give ids as `begin`")


def _check_shape(name: str, value: Array, shape: Sequence[Any]) -> None:
    """Refuse a value of other sizes than those that the encoder states; OptionError."""
    fits = len(value.shape) == len(shape) and all(
        not isinstance(wanted, int) or wanted == size
        for wanted, size in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise OptionError(
            f"{name} is {list(value.shape)}, but the model takes {[str(size) for size in shape]}"
        )
