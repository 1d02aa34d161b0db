"""How data is named in one line: a source, several sources, or domains with sources and weights."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsify.data.files import suffix_of
from sparsify.data.sources import SUFFIXES
from sparsify.errors import DataError

# What may stand in a figure's name and in the text of a pipeline.
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A source of text (see `documents`), with the domain that it is and its weight where these are said."""

    text: str
    domain: str | None = None
    weight: float | None = None


def parse_sources(spec: str) -> list[Source]:
    """What `spec` names: `SOURCE`, or `SOURCE,SOURCE`, or `NAME=SOURCE[:WEIGHT],NAME=SOURCE[:WEIGHT]`.

    A path that is there is always that path, whatever is in its name. Raises DataError when only some sources
    have names or weights, for a name that is none, and for one that stands there twice.
    """
    sources = [_source(part) for part in _parts(spec)]
    if len(sources) > 1 and not all(source.text for source in sources):
        raise DataError(f"the data '{spec}' has a comma with nothing beside it")
    named = [source for source in sources if source.domain is not None]
    if named and len(named) < len(sources):
        other = next(source.text for source in sources if source.domain is None)
        raise DataError(
            f"the data '{spec}' gives some sources a name and '{other}' none; name all, as in "
            "web=a.txt,code=b.txt, or none"
        )
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        lacking = next(source.domain for source in sources if source.weight is None)
        raise DataError(
            f"the data '{spec}' has no weight for '{lacking}'; give all weights, or none"
        )
    check_names([source.domain for source in named if source.domain is not None])
    return sources


def check_names(names: Sequence[str]) -> None:
    """Names of domains must be words, each there once; DataError."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise DataError(
                f"'{name}' cannot be the name of a domain; use letters, digits, '_', '-' and '.'"
            )
        if list(names).count(name) > 1:
            raise DataError(f"the domain '{name}' is named twice")


def without_folders(spec: str) -> str:
    """A spec for people: files without their folders, datasets with their owners."""
    return ",".join(_without_folder(part) for part in _parts(spec))


def _without_folder(part: str) -> str:
    name, text = _named(part)
    place = re.split("[:#]", text)[0]
    owned = place.count("/") == 1 and not place.startswith((".", "~", "/")) and not _is_there(place)
    if not owned or suffix_of(Path(place)) in SUFFIXES:  # else a dataset with its owner
        text = Path(text).name
    return text if name is None else f"{name}={text}"


def _parts(spec: str) -> list[str]:
    if _is_there(spec) or "," not in spec:
        return [spec]
    return [part.strip() for part in spec.split(",")]


def _source(part: str) -> Source:
    name, text = _named(part)
    if name is None:
        return Source(text)
    source, colon, last = text.rpartition(":")
    if _is_there(text) or not colon:
        return Source(text, name)
    try:
        return Source(source, name, float(last))
    except ValueError:  # the colon belongs to the name of a dataset
        return Source(text, name)


def _named(part: str) -> tuple[str | None, str]:
    """The name before a source, None where there is none, and the source with what follows."""
    name, equals, text = part.partition("=")
    # The name of a dataset may hold an equals sign behind these.
    if not equals or _is_there(part) or "/" in name or ":" in name:
        return None, part
    return name, text


def _is_there(text: str) -> bool:
    """Whether a path is there; a whole line of sources may be longer than any path."""
    return bool(text) and os.path.exists(os.path.expanduser(text))
