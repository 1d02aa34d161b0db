"""The catalogue of passes and recipes as plain data: names, options and sentences without importing torch.

`catalogue.json` is written from the passes themselves by `docs/generate.py`; a test holds it against them.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, get_args, get_type_hints

from sparsify.errors import PipelineError, nearest
from sparsify.text.options import Options, describe_type, missing_option, unknown_option
from sparsify.text.syntax import parse_calls


@dataclasses.dataclass(frozen=True)
class Entry:
    """A pass, or a part `name{...}` of its options, as a reader meets it: names, values and defaults."""

    name: str
    about: str
    rewrite: str
    doc: str
    options: tuple[tuple[str, str, str], ...]
    example: str = ""
    parts: tuple["Entry", ...] = ()


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Every pass of this package, and what each of its recipes needs (`data`, `training`)."""

    passes: tuple[Entry, ...]
    needs: Mapping[str, tuple[str, ...]]


@cache
def catalogue() -> Catalogue:
    """What `catalogue.json` holds."""
    text = (resources.files("sparsify.text") / "catalogue.json").read_text(encoding="utf-8")
    return from_json(json.loads(text))


def from_json(value: Mapping[str, Any]) -> Catalogue:
    """The catalogue in JSON values; the inverse of `dataclasses.asdict`."""
    needs = {name: tuple(words) for name, words in value["needs"].items()}
    return Catalogue(tuple(map(_entry, value["passes"])), needs)


def _entry(value: Mapping[str, Any]) -> Entry:
    options = tuple(tuple(row) for row in value["options"])
    return Entry(**{**value, "options": options, "parts": tuple(map(_entry, value["parts"]))})


def entry_of(kind: type[Options], example: str = "") -> Entry:
    """What is said of a pass: its module's first sentence and body, its docstring, its options."""
    head, _, body = (inspect.getdoc(inspect.getmodule(kind)) or "").partition("\n\n")
    about = " ".join(head.split()).partition(": ")[2]
    doc = inspect.getdoc(kind) or ""
    return Entry(kind.name, about, body, doc, tuple(_rows(kind)), example, tuple(_parts(kind)))


def _parts(kind: type[Options]) -> Iterator[Entry]:
    """The options of a kind that have options of their own, and theirs."""
    for hint in get_type_hints(kind).values():
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, Options):
                doc = inspect.getdoc(inner) or ""
                yield Entry(inner.name, "", "", doc, tuple(_rows(inner)))
                yield from _parts(inner)


def _rows(kind: type[Options]) -> list[tuple[str, str, str]]:
    """Name, values and default of every option of a pass or exporter."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = "required" if field.default is dataclasses.MISSING else _spell(field.default)
        found.append((field.name, describe_type(hints[field.name]), default))
    return found


def check_words(text: str, passes: Iterable[Entry]) -> None:
    """Refuse a pipeline text that names a pass or an option that is not there, before anything is imported.

    Values are not looked at. Raises PipelineError or OptionError, as reading the pipeline would.
    """
    known = {item.name: item for item in passes}
    for call in parse_calls(text):
        if call.name not in known:
            raise unknown_name("pass", call.name, known)
        names = [row[0] for row in known[call.name].options]
        for key in call.options:
            if key not in names:
                raise unknown_option(call.name, key, names)
        for name, _, default in known[call.name].options:
            if default == "required" and name not in call.options:
                raise missing_option(call.name, name)


def unknown_name(what: str, name: str, known: Iterable[str]) -> PipelineError:
    """The error for a pass, recipe or exporter that is not there, with the nearest one."""
    return PipelineError(f"no {what} is called '{name}'{nearest(name, known)}")


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "nothing"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
