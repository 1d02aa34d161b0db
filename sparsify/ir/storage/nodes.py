"""What a node of a stored graph may say: checked as JSON, before a node is made.

torch.fx writes the code of a graph module from the names of its nodes and runs it, so that each name that
reaches it must be a name and nothing else: an identifier where it stands bare, word characters where it
stands in quotes.
"""

import inspect
import keyword
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from sparsify.errors import DataError
from sparsify.ir.ops.allowed import ARITHMETIC, op_named

KINDS = ("placeholder", "get_attr", "call_function", "output")
# The most nodes, characters of a name, and size of a number.
NODES, NAME, INTEGER = 1 << 18, 512, 1 << 63
_ITEMS, _DEPTH = 1 << 12, 6  # of an argument: entries of a list, and lists within lists
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ATOM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*", re.ASCII)
_DEVICE = re.compile(r"[a-z]{2,12}(:[0-9]{1,3})?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_ .,>-]{0,128}", re.ASCII)
_DTYPES = {
    str(value).removeprefix("torch.") for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}  # fmt: skip
_TAGGED: Mapping[str, frozenset[str]] = {
    "dtype": frozenset(_DTYPES),
    "layout": frozenset({"strided"}),
    "memory_format": frozenset({"contiguous_format", "preserve_format", "channels_last"}),
    "float": frozenset({"inf", "-inf", "nan"}),
}
# Types of parameters in torch's schemas, and the word of their values.
_WORDS = {
    "ScalarType": "dtype",
    "Layout": "layout",
    "MemoryFormat": "memory_format",
    "Device": "device",
}
# What a program's module has of its own: no tensor may take its place.
_TAKEN = frozenset(dir(fx.GraphModule(torch.nn.Module(), fx.Graph())))
# Names that stand in the code around the nodes.
_IN_CODE = frozenset({"self", "torch", "device", "getattr", "slice", "inf", "nan", "math"})
_SIZES = frozenset(
    {"aten.sym_size.int", "aten.sym_numel.default", "aten.item.default", *ARITHMETIC}
)
_REQUIRED = ("op", "name", "target", "args", "kwargs")


def check_nodes(entries: Any) -> tuple[list[str], set[str]]:
    """Check every node of a stored graph; the names of its inputs in order, and the tensors it reads.

    Raises DataError naming the node and what is wrong with it.
    """
    if not isinstance(entries, list) or not 0 < len(entries) <= NODES:
        raise DataError("its graph is not a list of nodes")
    names: set[str] = set()
    inputs: list[str] = []
    reads: set[str] = set()
    sizes: list[bool] = []  # of each node, whether it is a size
    for index, entry in enumerate(entries):
        try:
            _check_entry(entry, names, last=index == len(entries) - 1)
            _CHECKS[entry["op"]](entry, sizes)
            names.add(entry["name"])
            if entry["op"] == "placeholder":
                inputs.append(entry["target"])
            elif entry["op"] == "get_attr":
                reads.add(entry["target"])
        except DataError as error:
            raise DataError(f"node {index} of its graph: {error}") from None
        sizes.append(entry["target"] in _SIZES)
    if len(set(inputs)) != len(inputs):
        raise DataError("two inputs of its graph have the same name")
    return inputs, reads


def is_identifier(value: Any) -> bool:
    """Whether a value may stand as a bare name in code."""
    return (
        isinstance(value, str)
        and len(value) <= NAME
        and _IDENTIFIER.fullmatch(value) is not None
        and not keyword.iskeyword(value)
    )


def is_path(value: Any) -> bool:
    """Whether a value may be the path of a tensor: words and numbers with dots between them."""
    if not isinstance(value, str) or not 0 < len(value) <= NAME:
        return False
    atoms = value.split(".")
    return all(
        _ATOM.fullmatch(atom) is not None and not keyword.iskeyword(atom) and atom not in _TAKEN
        for atom in atoms
    )


def _check_entry(entry: Any, names: set[str], *, last: bool) -> None:
    if not isinstance(entry, dict) or any(key not in entry for key in _REQUIRED):
        raise DataError(f"a node has {', '.join(_REQUIRED)}")
    if entry["op"] not in KINDS:
        raise DataError(f"the kind {shown(entry['op'])} of node is unknown")
    if (entry["op"] == "output") != last:
        raise DataError("the output is the last node, and no other one")
    if not is_identifier(entry["name"]) or entry["name"] in names:
        raise DataError(f"its name {shown(entry['name'])} is no name, or that of another node")
    if not isinstance(entry["args"], list) or not isinstance(entry["kwargs"], dict):
        raise DataError("its arguments are not a list and a mapping")
    module, dropout = entry.get("module", ""), entry.get("dropout_p", 0.0)
    if not isinstance(module, str) or not (module.isprintable() and len(module) <= NAME):
        raise DataError("its module is not a path")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise DataError("its dropout is not between 0 and 1")


def _check_placeholder(entry: Mapping[str, Any], sizes: list[bool]) -> None:
    target = entry["target"]
    if not is_identifier(target) or target in _IN_CODE:
        raise DataError(f"the input {shown(target)} has no name that an input may have")
    _refuse_arguments(entry)


def _check_read(entry: Mapping[str, Any], sizes: list[bool]) -> None:
    if not is_path(entry["target"]):
        raise DataError(f"the tensor {shown(entry['target'])} has no name that a tensor may have")
    _refuse_arguments(entry)


def _check_output(entry: Mapping[str, Any], sizes: list[bool]) -> None:
    args = entry["args"]
    if entry["target"] != "output" or entry["kwargs"] or len(args) != 1:
        raise DataError("the output takes one argument")
    given = args[0].get("tuple") if isinstance(args[0], dict) else None
    if not isinstance(given, list) or not given:
        raise DataError("the output is a tuple of nodes")
    for value in given:
        if not isinstance(value, dict) or set(value) != {"node"}:
            raise DataError("the output is a tuple of nodes")
        _check_value(value, len(sizes), 0)


def _check_call(entry: Mapping[str, Any], sizes: list[bool]) -> None:
    target = entry["target"]
    if not isinstance(target, str):
        raise DataError("its target is not the name of an op")
    known = parameters_of(op_named(target))
    strange = [key for key in entry["kwargs"] if key not in known]
    if strange or len(entry["args"]) > len(known):
        what = (
            f"'{target}' takes no argument {shown(strange[0])}" if strange else "too many arguments"
        )
        raise DataError(what)
    given = dict(zip(known, entry["args"], strict=False)) | entry["kwargs"]
    for value in (*entry["args"], *entry["kwargs"].values()):
        _check_value(value, len(sizes), 0)
    for name, value in given.items():
        # torch takes a number for these, too, looks up what is none of them, and crashes.
        if (
            known[name]
            and value is not None
            and not (isinstance(value, dict) and known[name] in value)
        ):
            raise DataError(f"'{target}' takes no {shown(value)} for its {name}")
    if target in ARITHMETIC:
        for value in entry["args"]:
            _check_operand(value, sizes)
    elif target == "operator:getitem" and not (
        len(entry["args"]) == 2
        and isinstance(entry["args"][0], dict)
        and type(entry["args"][1]) is int
    ):
        raise DataError("an item is picked from a node by a number")


def parameters_of(target: Any) -> Mapping[str, str]:
    """The parameters of a function that may stand in a graph, in order, with the word that tags their values.

    The word is empty for those that take numbers, nodes or text.
    """
    found = _PARAMETERS.get(target)
    if found is None:
        if isinstance(target, torch._ops.OpOverload):
            found = {
                argument.name: _WORDS.get(
                    str(argument.real_type).removeprefix("Optional[").rstrip("]"), ""
                )
                for argument in target._schema.arguments
            }
        else:
            found = _signature(target)
        _PARAMETERS[target] = found
    return found


_PARAMETERS: dict[Any, Mapping[str, str]] = {}


def _signature(target: Callable[..., Any]) -> Mapping[str, str]:
    """Of a plain function; one that takes any number of arguments takes as many as a list may hold."""
    parameters = inspect.signature(target).parameters
    more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return dict.fromkeys([*parameters, *(map(str, range(_ITEMS if more else 0)))], "")


def _check_operand(value: Any, sizes: list[bool]) -> None:
    """Arithmetic is on sizes and numbers: on tensors it is ATen's, on tuples it would repeat them."""
    if isinstance(value, dict) and "node" in value:
        if not sizes[value["node"]]:
            raise DataError(f"arithmetic on node {value['node']}, which is not a size")
    elif not isinstance(value, int | float):
        raise DataError("arithmetic on what is no number")


def _refuse_arguments(entry: Mapping[str, Any]) -> None:
    if entry["args"] or entry["kwargs"]:
        raise DataError("inputs and tensors take no arguments")


def _check_value(value: Any, before: int, depth: int) -> None:
    """A constant, or a node among the first `before` ones."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        fits = abs(value) <= INTEGER
    elif isinstance(value, float):
        fits = math.isfinite(value)
    elif isinstance(value, str):
        fits = _WORD.fullmatch(value) is not None
    elif isinstance(value, list):
        fits = _check_list(value, before, depth)
    else:
        fits = isinstance(value, dict) and len(value) == 1 and _check_tag(value, before, depth)
    if not fits:
        raise DataError(f"the argument {shown(value)} is none of a graph")


def _check_list(values: list[Any], before: int, depth: int) -> bool:
    if depth >= _DEPTH or len(values) > _ITEMS:
        return False
    for value in values:
        _check_value(value, before, depth + 1)
    return True


def _check_tag(value: Mapping[str, Any], before: int, depth: int) -> bool:
    """A value that JSON has no form for, under the word for its kind."""
    ((word, inner),) = value.items()
    if word == "node":
        return type(inner) is int and 0 <= inner < before
    if word in ("tuple", "slice"):
        whole = isinstance(inner, list) and (word == "tuple" or len(inner) == 3)
        return whole and _check_list(inner, before, depth)
    if word == "device":
        return isinstance(inner, str) and _DEVICE.fullmatch(inner) is not None
    return isinstance(inner, str) and inner in _TAGGED.get(word, ())


def shown(value: Any) -> str:
    """A stored value as a sentence shows it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], list[bool]], None]] = {
    "placeholder": _check_placeholder,
    "get_attr": _check_read,
    "call_function": _check_call,
    "output": _check_output,
}
