"""What the document of a stored program may say beside its graph: every entry, before it is used."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from sparsify.errors import DataError
from sparsify.ir.storage.nodes import INTEGER, NAME, check_nodes, is_identifier, is_path, shown
from sparsify.pretrained.companions import check_files
from sparsify.pretrained.origin import is_origin

_DEEP = 24  # of JSON within JSON
_LINE, _ITEMS = 1 << 16, 1 << 16  # the longest text of a pass, the most entries of a list of names
_DIMENSIONS, _AXES = 32, 8  # of a tensor; the most names of dimensions that vary
_FEATURE = re.compile(r"[a-z]+([.-][a-z]+)*", re.ASCII)
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_ ]{0,63}(\+[A-Za-z_][A-Za-z0-9_ ]{0,63})*", re.ASCII)
_OUTPUT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,255}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_Check = Callable[[Any], bool]


def check_document(about: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Check what `program.json` says; the inputs of its graph in order, and the tensors it reads.

    Raises DataError naming the entry that is missing or of another kind.
    """
    for key, (fits, what) in _ENTRIES.items():
        _require(about, key, fits, what)
    for key, (fits, what) in _OF_SOURCE.items():
        _require(about["source"], key, fits, what, "source.")
    check_files(about["source"].get("files", {}))
    inputs, reads = check_nodes(about["graph"])
    for path in reads:
        if any(path.startswith(f"{other}.") for other in _owners(path) if other in reads):
            raise DataError(f"the tensor '{path}' lies in another tensor")
    axes = {name for dims in about["dynamic"].values() for name in dims.values()}
    if len({part for name in axes for part in name.split("+")}) > _AXES:
        raise DataError(f"more than {_AXES} dimensions vary")
    for key in ("parameters", "bits"):
        for path in about[key].keys() - reads:
            raise DataError(f"'{key}' names the tensor '{path}', which the graph does not read")
    for name in about["dynamic"].keys() - set(inputs):
        raise DataError(f"'dynamic' names the input '{name}', which the graph does not take")
    return inputs, reads


def _owners(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _require(values: Mapping[str, Any], key: str, fits: _Check, what: str, at: str = "") -> None:
    if key not in values:
        if at and key not in _ALWAYS:
            return
        if key in _LATER:
            return
        raise DataError(f"it has no '{at}{key}'")
    if not fits(values[key]):
        raise DataError(f"'{at}{key}' is {shown(values[key])}, not {what}")


def _line(value: Any) -> bool:
    return (
        isinstance(value, str) and len(value) <= _LINE and value.isprintable() and "`" not in value
    )


def _names(value: Any, fits: _Check) -> bool:
    return isinstance(value, list) and len(value) <= _ITEMS and all(map(fits, value))


def _mapping(value: Any, keys: _Check, values: _Check) -> bool:
    return isinstance(value, dict) and all(keys(k) and values(v) for k, v in value.items())


def _shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _DIMENSIONS
        and all(type(size) is int and 0 <= size < INTEGER for size in value)
        and math.prod(value) < INTEGER
    )


def _class(value: Any) -> bool:
    return value == "" or is_identifier(value)


def _path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= NAME and value.isprintable()


def _dims(value: Any) -> bool:
    return _mapping(
        value,
        lambda dim: dim.isascii() and dim.isdecimal() and int(dim[:4]) < _DIMENSIONS,
        lambda name: isinstance(name, str) and _AXIS.fullmatch(name) is not None,
    )


def _span(value: Any) -> bool:
    return (
        isinstance(value, list) and [type(n) for n in value] == [int, int] and value[0] <= value[1]
    )


def _data(value: Any) -> bool:
    """Whether a value is a mapping of JSON that nests no deeper than what is read recursively."""
    if not isinstance(value, dict):
        return False
    level: list[Any] = [value]
    for _ in range(_DEEP):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [x for item in inner for x in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return True
    return False


def _plan(value: Any) -> bool:
    """What passes have decided, by the word of each."""
    return _data(value) and all(fits(value[key]) for key, fits in _PLAN.items() if key in value)


def _paths(value: Any) -> bool:
    return _names(value, _path)


_PLAN: Mapping[str, _Check] = {
    "axes": lambda v: _names(v, lambda keep: isinstance(keep, dict)),
    "layers": lambda v: _names(v, _paths),
    "blocks": lambda v: _names(v, _paths),
    "shares": lambda v: _mapping(v, _path, lambda share: isinstance(share, str)),
    "values": lambda v: _mapping(v, _path, lambda values: isinstance(values, str)),
    "experts": lambda v: _mapping(v, _path, lambda form: isinstance(form, dict)),
    "packed": lambda v: _mapping(v, _path, lambda form: isinstance(form, dict)),
    "clusters": lambda v: _mapping(v, _path, lambda c: _names(c, lambda n: type(n) is int)),
    "stacks": lambda v: _names(v, _paths),
    "factors": lambda v: _mapping(v, _path, _paths),
    "reordered": lambda v: type(v) is int,
}
_ENTRIES: Mapping[str, tuple[_Check, str]] = {
    "pipeline": (lambda v: _names(v, _line), "a list of texts"),
    "features": (
        lambda v: _names(v, lambda w: isinstance(w, str) and _FEATURE.fullmatch(w) is not None),
        "a list of words",
    ),
    "plan": (_plan, "what passes have decided"),
    "source": (lambda v: isinstance(v, dict), "a mapping"),
    "dynamic": (lambda v: _mapping(v, is_identifier, _dims), "names of dimensions by input"),
    "limits": (
        lambda v: _mapping(v, lambda w: _AXIS.fullmatch(w) is not None, _span),
        "the least and the most by dimension",
    ),
    "aliases": (lambda v: _mapping(v, _path, _path), "paths by path"),
    "parameters": (
        lambda v: _mapping(v, is_path, lambda x: isinstance(x, bool)),
        "true or false by path",
    ),
    "bits": (lambda v: _mapping(v, is_path, _shape), "shapes by path"),
    "graph": (lambda v: isinstance(v, list), "a list of nodes"),
    "hashes": (
        lambda v: _mapping(
            v, _path, lambda x: isinstance(x, str) and _HASH.fullmatch(x) is not None
        ),
        "hashes by name",
    ),
}
_LATER = ("hashes", "limits")  # which programs of earlier versions lack
_ALWAYS = ("config", "model_class", "output_class", "outputs")
_OF_SOURCE: Mapping[str, tuple[_Check, str]] = {
    "config": (_data, "a mapping"),
    "model_class": (_class, "the name of a class"),
    "output_class": (_class, "the name of a class"),
    "outputs": (
        lambda v: _names(v, lambda w: isinstance(w, str) and _OUTPUT.fullmatch(w) is not None),
        "a list of names",
    ),
    "shapes": (lambda v: _mapping(v, _path, _shape), "shapes by path"),
    "generation": (_data, "a mapping"),
    "origin": (is_origin, "what a card says of a model"),
    "known": (
        lambda v: _mapping(v, is_identifier, lambda x: isinstance(x, list)),
        "lists of numbers by name",
    ),
}
