"""Layers of a cache of transformers for the time of a trace: what they hold are values of a graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
)

from sparsify.errors import TraceError
from sparsify.ir.decode.caches import CACHES, CONVOLUTION, INDEX, RECURRENCE

# The layer that holds nothing; releases without one have no layers that do not.
_EMPTY = getattr(cache_utils, "DummyLayer", DynamicLayer)
# The layer whose tokens have a short key as well; releases without one have no models that ask for it.
_INDEXED = getattr(cache_utils, "DynamicIndexedLayer", DynamicLayer)
_BY_HEADS = 4  # dimensions of a state [batch, heads, rows, columns]


class States(LinearAttentionLayer):
    """States that are there from the start, zeros before the first token, and are replaced, not written."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        conv, recurrent = (_numbered(held, kind) for kind in (CONVOLUTION, RECURRENCE))
        super().__init__(number_of_states=max(1, len(conv), len(recurrent)))
        self.conv_states.update(conv)
        self.recurrent_states.update(recurrent)
        self.has_previous_state = dict.fromkeys(self.has_previous_state, True)

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, *_: Any, **__: Any
    ) -> Tensor:
        """The state with new inputs `[batch, channels, length]` behind it; its end is kept."""
        before = self.conv_states[state_idx]
        assert before is not None
        whole = torch.cat([before, conv_states], -1)
        self.conv_states[state_idx] = whole[..., -before.shape[-1] :]
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, *_: Any, **__: Any
    ) -> Tensor:
        """Keep the state after the last token."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class StatesAndKeys(States, DynamicLayer):  # type: ignore[misc, override]
    """Both in one layer."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        DynamicLayer.__init__(self)
        States.__init__(self, held)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Only keys and values begin empty."""
        DynamicLayer.lazy_initialization(self, *args, **kwargs)


class Handed(DynamicLayer):
    """Keys and values of another sequence, which are there at once and stay."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Keep both as they are `[batch, heads, length, size]`."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states


class Carried(DynamicCache):
    """What all layers hold, a mapping by kind for each layer of the model."""

    def __init__(self, layers: Sequence[Mapping[str, Tensor]]) -> None:
        # Without the config every layer keeps all it has seen; windows are the masks' business.
        super().__init__()
        self.layers = [_layer(held) for held in layers]
        self._asked: list[Tensor] = []

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """As for every cache; who computes with it is not always told of it, and may ask for it later."""
        state = super().get_recurrent_state(layer_idx, state_idx)
        if state is not None:
            self._asked = list(state.unbind(1)) if state.dim() == _BY_HEADS else [state]
        return state

    def asked(self) -> Tensor | None:
        """The state `[batch, rows, columns]` that a layer has read last, of several heads one by one."""
        if not self._asked:
            raise TraceError("a scan begins with a state that no layer has asked its cache for")
        return self._asked.pop(0)

    def held(self, layer: int, kind: str) -> Tensor:
        """What a layer holds of a kind."""
        return held_by(self.layers[layer])[kind]


class Listed(list[Tensor]):
    """The states of a model that takes them as a list and writes into them, each for all its layers."""

    def __init__(self, layers: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__(value.clone() for held in layers for value in held.values())

    def held(self, layer: int, kind: str) -> Tensor:
        """The state of a number."""
        return self[int(kind.removeprefix(RECURRENCE) or 0)]

    def asked(self) -> Tensor | None:
        """Nothing: whoever computes with a state is told of it."""
        return None


def behind_encoder(own: Carried) -> EncoderDecoderCache:
    """A decoder's cache whose keys and values of what was encoded are still to be made."""
    handed = DynamicCache()
    handed.layers = [Handed() for _ in own.layers]  # type: ignore[no-untyped-call]
    return EncoderDecoderCache(own, handed)


def held_by(layer: Any) -> dict[str, Tensor]:
    """What a layer of any cache of transformers holds, by kind; the states of a list are one layer's."""
    if isinstance(layer, list):
        return {f"{RECURRENCE}{number or ''}": value for number, value in enumerate(layer)}
    found = {CACHES[0]: getattr(layer, "keys", None), CACHES[1]: getattr(layer, "values", None)}
    found[INDEX] = getattr(layer, "indexer_keys", None)
    for kind, name in ((CONVOLUTION, "conv_states"), (RECURRENCE, "recurrent_states")):
        for number, value in getattr(layer, name, {}).items():
            found[f"{kind}{number or ''}"] = value
    return {kind: value for kind, value in found.items() if value is not None}


def _layer(held: Mapping[str, Tensor]) -> Any:
    if not held:
        return _EMPTY()
    grows = CACHES[0] in held
    if INDEX in held:
        layer: Any = _INDEXED()
        layer.indexer_keys, layer.is_indexer_initialized = held[INDEX], True
    elif len(held) > 2 * grows:
        layer = (StatesAndKeys if grows else States)(held)
    else:
        layer = DynamicLayer()
    if grows:
        layer.update(*(held[kind] for kind in CACHES))
    return layer


def _numbered(held: Mapping[str, Tensor], kind: str) -> dict[int, Tensor]:
    """The states of a kind by their numbers."""
    return {
        int(name.removeprefix(kind) or 0): value
        for name, value in held.items()
        if name.startswith(kind)
    }
