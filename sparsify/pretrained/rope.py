"""Rotary positions whose angles depend on how long the text is."""

from collections.abc import Iterator, Mapping
from typing import Any

_LENGTH = "original_max_position_embeddings"


def switch_length(config: Mapping[str, Any]) -> int | None:
    """The tokens up to which a config's rotary angles are of one kind; None where they are all along.

    Types that switch once (`longrope`) have other angles for every token of a longer text, those before it
    too: keys that were kept from before are then wrong. Read off the type, for all layers or for each kind.
    """
    found = []
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            length = rope.get(_LENGTH) or config.get(_LENGTH)
            found += [length] if isinstance(length, int) else []
    return min(found, default=None)


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("rope_parameters", "rope_scaling"):
        said = config.get(name)
        if isinstance(said, Mapping):
            yield said
            yield from (part for part in said.values() if isinstance(part, Mapping))
    text = config.get("text_config")
    if isinstance(text, Mapping):
        yield from _ropes(text)
