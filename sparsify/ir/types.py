"""Types of nodes: each is computed by running the op on fake tensors, never guessed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from sparsify.ir.program import Program

# Hint sizes of symbolic dimensions: distinct, so that duck shaping ties equal names and nothing else.
_HINTS = (5, 13, 17, 19, 23, 29, 31, 37)
MODE_KEY = "sparsify_fake_mode"


def propagate(program: Program) -> None:
    """Type every node of the program afresh: `node.meta["val"]` becomes a fake tensor or a size."""
    for node, value in infer(program).items():
        node.meta["val"] = value


def infer(program: Program) -> dict[fx.Node, Any]:
    """The type of every node, computed on fake tensors with symbolic sizes for `program.dynamic`.

    Equal ops on equal types are run once: the layers of a model repeat each other.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=True), allow_non_fake_inputs=True)
    program.module.meta[MODE_KEY] = mode
    inputs = _symbolic_inputs(program, mode)
    values: dict[fx.Node, Any] = {}
    keys: dict[fx.Node, Any] = {}
    seen: dict[Any, Any] = {}
    with mode, enable_python_dispatcher(), torch.no_grad():
        for node in program.graph.nodes:
            call = _call_key(node, keys)
            if call is None or call not in seen:
                values[node] = _value(program, node, values, inputs, mode)
                if call is not None:
                    seen[call] = values[node]
            else:
                values[node] = seen[call]
            keys[node] = _type_key(values[node])
    return values


def _call_key(node: fx.Node, keys: Mapping[fx.Node, Any]) -> Any:
    if node.op != "call_function":
        return None
    return (node.target, _freeze(node.args, keys), _freeze(node.kwargs, keys))


def _freeze(value: Any, keys: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return keys[value]
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, keys) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _freeze(item, keys)) for key, item in value.items())
    # 1, 1.0 and True are equal to Python, not to an op.
    return (type(value), str(value) if isinstance(value, slice) else value)


def _type_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        sizes = (*map(_size_key, value.shape), *map(_size_key, value.stride()))
        return (value.dtype, value.device, sizes)
    if isinstance(value, list | tuple):
        return tuple(_type_key(item) for item in value)
    return _size_key(value)


def _size_key(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else (type(size), size)


def type_node(program: Program, node: fx.Node) -> None:
    """Type one new node from its already typed arguments."""
    mode = program.module.meta.get(MODE_KEY)
    if mode is None:
        propagate(program)
        return
    known = {argument: argument.meta["val"] for argument in node.all_input_nodes}
    with mode, enable_python_dispatcher(), torch.no_grad():
        node.meta["val"] = _value(program, node, known, {}, mode)


def _value(
    program: Program,
    node: fx.Node,
    known: Mapping[fx.Node, Any],
    inputs: Mapping[str, Tensor],
    mode: FakeTensorMode,
) -> Any:
    if node.op == "placeholder":
        return inputs[str(node.target)]
    if node.op == "get_attr":
        return mode.from_tensor(program.tensor(str(node.target)), static_shapes=True)
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _symbolic_inputs(program: Program, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Fake inputs; a dimension called `a+b` is the sum of those that are called `a` and `b`."""
    terms = [name.split("+") for dims in program.dynamic.values() for name in dims.values()]
    hints = dict(zip(sorted({name for parts in terms for name in parts}), _HINTS, strict=False))
    inputs: dict[str, Tensor] = {}
    sizes: dict[str, Any] = {}
    for key, value in program.sample.items():
        dims = program.dynamic.get(key, {})
        if any("+" in name for name in dims.values()):
            continue
        shape = [hints[dims[i]] if i in dims else size for i, size in enumerate(value.shape)]
        kinds = [DimDynamic.DUCK if i in dims else DimDynamic.STATIC for i in range(value.dim())]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        example = torch.empty(shape, dtype=value.dtype, device=value.device)
        inputs[key] = mode.from_tensor(example, symbolic_context=context)
        sizes.update({name: inputs[key].shape[i] for i, name in dims.items()})
    for key, value in program.sample.items():
        if key not in inputs:
            dims = program.dynamic[key]
            names = [dims[i].split("+") if i in dims else [] for i in range(value.dim())]
            shape = [
                sum(sizes[name] for name in parts) if parts else size
                for parts, size in zip(names, value.shape, strict=True)
            ]
            with mode:
                inputs[key] = torch.empty(shape, dtype=value.dtype, device=value.device)
    return inputs


def dimension_names(program: Program) -> dict[Any, str]:
    """Symbol of each dynamic input dimension -> its name, for printing."""
    names = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            for dim, name in program.dynamic.get(str(node.target), {}).items():
                size = node.meta["val"].shape[dim]
                if isinstance(size, torch.SymInt) and "+" not in name:
                    names[size.node.expr] = name
    return names
