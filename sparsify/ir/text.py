"""The program as text: types first, tensors by path, values numbered; and the difference of two texts."""

import difflib
import operator
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.mode import FLAGS
from sparsify.ir.ops.registry import op_of
from sparsify.ir.program import Program
from sparsify.ir.types import dimension_names

_END = 9223372036854775807
_SDPA = torch.ops.aten.scaled_dot_product_attention.default
_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip
_LEFT_OUT = {"device", "layout", "pin_memory"}


def to_text(program: Program) -> str:
    """One line a node, `%3 : f32[batch,length,64] = linear(%2, @up.weight)`; equal programs, equal text."""
    names = dimension_names(program)
    numbers: dict[fx.Node, str] = {}
    lines = []
    for node in program.graph.nodes:
        if node.op == "get_attr":
            numbers[node] = f"@{node.target}"
            continue
        if node.op == "output":
            lines.append(f"  return {_value(node.args[0], numbers)}")
            continue
        numbers[node] = f"%{len(lines)}"
        lines.append(
            f"  {numbers[node]} : {_type(node.meta.get('val'), names)} = {_call(node, numbers)}"
        )
    return "\n".join(lines) + "\n"


def header(program: Program) -> str:
    """The first line of a printed program: the model class and its features."""
    return (
        f"program {program.source.model_class} features {{{', '.join(sorted(program.features))}}}"
    )


def line_of(program: Program, node: fx.Node) -> int:
    """The line of the text on which a node stands; a tensor read stands where it is first used."""
    line = 0
    for other in program.graph.nodes:
        if node in ({other} | set(other.all_input_nodes) if other.op != "get_attr" else set()):
            return line
        line += other.op != "get_attr"
    return line


def diff(before: str, after: str, name: str) -> str:
    """The unified difference of two texts, without the numbers that insertion shifts."""
    a, b = before.splitlines(), after.splitlines()
    return "\n".join(
        difflib.unified_diff(a, b, f"before {name}", f"after {name}", lineterm="", n=2)
    )


def _call(node: fx.Node, numbers: Mapping[fx.Node, str]) -> str:
    if node.op == "placeholder":
        return f"input {node.target}"
    args = [_value(a, numbers) for a in _printed_args(node)]
    args += [
        f"{key}={_value(value, numbers)}"
        for key, value in sorted(node.kwargs.items())
        if key not in _LEFT_OUT and key != "dropout_p"
    ]
    return f"{op_name(node.target)}({', '.join(args)})"


def _printed_args(node: fx.Node) -> tuple[Any, ...]:
    """Arguments without the switch between training and evaluation: a mode is not part of the text."""
    if node.target in FLAGS:
        place = FLAGS[node.target]
        return (*node.args[:place], *node.args[place + 1 :])
    if node.target is _SDPA and len(node.args) > 4:
        return (*node.args[:4], node.meta.get("dropout_p", node.args[4]), *node.args[5:])
    return node.args


def op_name(target: Any) -> str:
    """How an op is spelt: `linear`, `add.Tensor`, `getitem`, `sparsify.probe`."""
    own = op_of(target)
    if own is not None and not isinstance(target, torch._ops.OpOverload):
        return own.name
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.").removesuffix(".default")
    return "getitem" if target is operator.getitem else getattr(target, "__name__", str(target))


def _value(value: Any, numbers: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return numbers[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, numbers) for item in value) + "]"
    if isinstance(value, slice):
        return f"{value.start}:{value.stop}"
    if value == _END and isinstance(value, int):
        return "end"
    return _SHORT.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


def _type(value: Any, names: Mapping[Any, str]) -> str:
    if isinstance(value, Tensor):
        sizes = ",".join(_size(size, names) for size in value.shape)
        return f"{_SHORT.get(value.dtype, str(value.dtype))}[{sizes}]"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_type(item, names) for item in value) + ")"
    return _size(value, names)


def _size(size: Any, names: Mapping[Any, str]) -> str:
    if not isinstance(size, torch.SymInt):
        return str(size)
    return _spell(size.node.expr, tuple(names.items()))


@lru_cache(maxsize=4096)
def _spell(expression: Any, names: tuple[tuple[Any, str], ...]) -> str:
    return str(expression.subs(dict(names))).replace(" ", "")
