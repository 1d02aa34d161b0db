"""Passes and their options as JSON Schema, for editors and checkers of configuration files."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sparsify.text.options import Options, required, words_of

Schema = dict[str, Any]
_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string"}


def pipeline_schema(kinds: Iterable[type[Options]]) -> Schema:
    """A pipeline: one line of text, or a list of passes with their options below them."""
    return {
        "description": "One line of text, or a list of passes with their options below them.",
        "anyOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"anyOf": [_call(kind) for kind in kinds]}},
        ],
    }


def _call(kind: type[Options]) -> Schema:
    """A pass or part: its name alone, its text, or a mapping of its name to options."""
    hints = get_type_hints(kind, include_extras=True)
    options = {
        item.name: _described(_value(hints[item.name]), item)
        for item in dataclasses.fields(kind)  # type: ignore[arg-type]
    }
    inner: Schema = {"type": "object", "properties": options, "additionalProperties": False}
    if required(kind):
        inner["required"] = required(kind)
    about = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    named = {
        "type": "object",
        "description": " ".join(about.split()),
        "properties": {
            kind.name: inner if required(kind) else {"anyOf": [inner, {"type": "null"}]}
        },
        "required": [kind.name],
        "additionalProperties": False,
    }
    text = rf"^{re.escape(kind.name)}\{{.*\}}$"
    bare = [] if required(kind) else [{"const": kind.name}]
    return {"anyOf": [*bare, {"type": "string", "pattern": text}, named]}


def _described(schema: Schema, item: Any) -> Schema:
    usual = item.default
    plain = isinstance(usual, bool | int | float | str)
    return {**schema, "default": usual} if plain else schema


def _value(kind: Any) -> Schema:
    origin, args = get_origin(kind), get_args(kind)
    if kind is type(None):
        return {"anyOf": [{"type": "null"}, {"const": "none"}]}
    if origin in (Literal, Annotated):
        return {"enum": list(words_of(kind))}
    if origin is Union or (origin is not None and origin.__name__ == "UnionType"):
        return {"anyOf": [_value(arg) for arg in args]}
    if origin is tuple:
        item = _value(args[0])
        return {"anyOf": [item, {"type": "string"}, {"type": "array", "items": item}]}
    if isinstance(kind, type) and issubclass(kind, Options):
        return _call(kind)
    return {"type": _SIMPLE.get(kind, "string")}
