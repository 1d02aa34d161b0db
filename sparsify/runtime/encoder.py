"""The encoder of an exported model: run once, and what a decoder reads of it in every step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
        values = dict(given)
        if MASK in self.inputs and MASK not in values and IDS in values:
            values[MASK] = torch.ones_like(values[IDS])
        if values.keys() != self.inputs.keys():
            raise OptionError(
                f"the model is given {', '.join(given) or 'nothing'}; it takes {', '.join(self.inputs)}"
            )
        feeds = {name: _array(values[name], entry) for name, entry in self.inputs.items()}
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


def _array(value: Tensor, entry: Any) -> Array:
    """A value in the numbers of an input; OptionError for other sizes than those that it states."""
    fits = value.numel() > 0 and len(value.shape) == len(entry.shape)
    if not fits or not all(
        not isinstance(wanted, int) or wanted == size
        for wanted, size in zip(entry.shape, value.shape, strict=True)
    ):
        takes = ", ".join(map(str, entry.shape))
        raise OptionError(f"{entry.name} is {list(value.shape)}, but the model takes [{takes}]")
    kind = np.float32 if entry.type == "tensor(float)" else np.int64
    return np.ascontiguousarray(value.numpy(), dtype=kind)
