"""Pipelines as lists and mappings, as YAML and JSON hold them, and back to text.

insert-masks{of=heads,channels} | calibrate    <->    [{insert-masks: {of: [heads, channels]}}, calibrate]
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.errors import PipelineError
from sparsify.text.syntax import Call, parse_calls

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"-?\d+(\.\d+(e[+-]?\d+)?|e[+-]?\d+)")


def structured(text: str) -> list[Any]:
    """A pipeline text as a list: a pass without options is its name, others a mapping of one key."""
    return [_value(call) for call in parse_calls(text)]


def flattened(passes: Any) -> str:
    """The text of a list of passes, or of a text, which stays as it is; PipelineError for anything else."""
    if isinstance(passes, str):
        return passes
    if not isinstance(passes, Sequence) or not passes:
        raise PipelineError(f"a pipeline is a text or a list of passes, not {_shown(passes)}")
    return " | ".join(_text(item) for item in passes)


def _value(call: Call) -> Any:
    if not call.options:
        return _number(call.name)
    options = {key: _options(values) for key, values in call.options.items()}
    return {call.name: options}


def _options(values: Sequence[Call]) -> Any:
    found = [_value(item) for item in values]
    return found[0] if len(found) == 1 else found


def _number(word: str) -> Any:
    """A word as the number or truth value that it spells; else the word."""
    if _WHOLE.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return {"true": True, "false": False}.get(word, word)


def _text(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, str | int | float):
        return str(item)
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        if options in (None, "", {}):
            return str(name)
        if isinstance(options, Mapping):
            inner = " ".join(f"{key}={_several(value)}" for key, value in options.items())
            return f"{name}{{{inner}}}"
    raise PipelineError(
        f"a pass is a name, or a name with a mapping of options below it, not {_shown(item)}"
    )


def _several(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    return _text(value)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
