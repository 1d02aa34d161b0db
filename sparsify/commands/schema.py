"""`sparsify-fx schema`: the JSON Schema of a file for `run --config`, from the options and the passes."""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, get_args, get_origin

from sparsify.engine.registry import passes
from sparsify.text.schema import pipeline_schema

_TYPES = {bool: "boolean", int: "integer", float: "number"}


def schema_of(verb: Callable[..., None]) -> dict[str, Any]:
    """The schema of the options of a verb; passes of other packages are in it."""
    found = inspect.signature(verb, eval_str=True).parameters
    options = {
        name.replace("_", "-"): _option(param.annotation)
        for name, param in found.items()
        if name not in ("context", "config")
    }
    options["pipeline"] = pipeline_schema(passes().values())
    for name, several in (("to", "array"), ("data", "object")):
        about = options[name]["description"]
        options[name] = {"description": about, "anyOf": [{"type": "string"}, {"type": several}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sparsify-fx run",
        "type": "object",
        "properties": options,
        "additionalProperties": False,
    }


def _option(annotation: Any) -> dict[str, Any]:
    """Type and sentence of an option, `Annotated[type, Option(help=...)]`."""
    kind, *more = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    if get_origin(kind) is UnionType:  # `int | None`
        kind = get_args(kind)[0]
    helps = [getattr(item, "help", None) for item in more]
    return {"type": _TYPES.get(kind, "string"), "description": next(filter(None, helps), "")}
