"""What an ONNX session carries from step to step: keys and values, and states of one size."""

from collections.abc import Mapping, Sequence
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


def empty_caches(
    session: Any, batch: int, capacity: int, fixed: Mapping[str, Array] | None = None
) -> Caches:
    """Caches that hold nothing, for a batch and at most `capacity` tokens of each; states are zeros.

    `fixed` holds inputs that are the same in every step.
    """
    given = {name: _value(array) for name, array in (fixed or {}).items()}
    pasts = [entry for entry in session.get_inputs() if entry.name.startswith(PAST)]
    shared = SHARED_CACHE in session.get_modelmeta().custom_metadata_map
    length = capacity if shared else 0
    values = {}
    for past in pasts:
        sizes = [size if isinstance(size, int) else length for size in past.shape[1:]]
        values[past.name] = _value(np.zeros((batch, *sizes), np.float32))
    if not shared:
        return GrowingCaches(session, values, given)
    states = [past.name for past in pasts if all(isinstance(size, int) for size in past.shape[1:])]
    return SharedCaches(session, values, states)


class SharedCaches:
    """Buffers of full length, which the model appends to in place; `states` it makes anew."""

    def __init__(
        self, session: Any, buffers: Mapping[str, Any], states: Sequence[str] = ()
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._states = states
        self._bind_made()  # the first of the outputs
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(name, buffer)
            if name not in states:
                self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), buffer)

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """As for all caches."""
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, _value(array))
        self._bind_made()  # anew: the shape of logits follows the input's
        self._session.run_with_iobinding(self._binding)
        first, *made = self._binding.get_outputs()[: 1 + len(self._states)]
        for name, value in zip(self._states, made, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        logits: Array = first.numpy()
        return logits

    def _bind_made(self) -> None:
        """Let the session make the outputs that share no buffer with an input."""
        for name in (LOGITS, *(state.replace(PAST, PRESENT) for state in self._states)):
            self._binding.bind_output(name)


class GrowingCaches:
    """Caches that each step makes anew, longer by its tokens."""

    def __init__(self, session: Any, empty: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        self._session, self._past, self._fixed = session, dict(empty), fixed
        self._outputs = [LOGITS, *(name.replace(PAST, PRESENT) for name in self._past)]

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """As for all caches."""
        given = {name: _value(array) for name, array in feeds.items()}
        feeds = {**given, **self._fixed, **self._past}
        first, *presents = self._session.run_with_ort_values(self._outputs, feeds)
        self._past = dict(zip(self._past, presents, strict=True))
        logits: Array = first.numpy()
        return logits


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(array)
