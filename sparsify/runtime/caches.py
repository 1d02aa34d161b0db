"""Key/value caches of an ONNX session, from step to step."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sparsify.runtime.session import SHARED_CACHE

Array = NDArray[Any]
PAST, PRESENT, LOGITS = "past_key_values.", "present.", "logits"


class Caches(Protocol):
    """The caches of one batch: each step appends to them."""

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """Logits `[batch, n, vocabulary]` of `input_ids [batch, n]` behind all tokens before."""


def empty_caches(session: Any, batch: int, capacity: int) -> Caches:
    """Caches that hold nothing, for a batch and at most `capacity` tokens of each sequence."""
    pasts = [entry for entry in session.get_inputs() if entry.name.startswith(PAST)]
    shared = SHARED_CACHE in session.get_modelmeta().custom_metadata_map
    length = capacity if shared else 0
    values = {}
    for past in pasts:
        _, heads, _, size = past.shape
        values[past.name] = _value(np.zeros((batch, heads, length, size), np.float32))
    return SharedCaches(session, values) if shared else GrowingCaches(session, values)


class SharedCaches:
    """Buffers of full length, which the model appends to in place."""

    def __init__(self, session: Any, buffers: Mapping[str, Any]) -> None:
        self._session, self._binding = session, session.io_binding()
        self._binding.bind_output(LOGITS)  # the first of the outputs
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), buffer)

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """As for all caches."""
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, _value(array))
        self._binding.bind_output(LOGITS)  # anew: its shape follows the input's
        self._session.run_with_iobinding(self._binding)
        logits: Array = self._binding.get_outputs()[0].numpy()
        return logits


class GrowingCaches:
    """Caches that each step makes anew, longer by its tokens."""

    def __init__(self, session: Any, empty: Mapping[str, Any]) -> None:
        self._session, self._past = session, dict(empty)
        self._outputs = [LOGITS, *(name.replace(PAST, PRESENT) for name in self._past)]

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """As for all caches."""
        given = {name: _value(array) for name, array in feeds.items()}
        first, *presents = self._session.run_with_ort_values(self._outputs, {**given, **self._past})
        self._past = dict(zip(self._past, presents, strict=True))
        logits: Array = first.numpy()
        return logits


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(array)
