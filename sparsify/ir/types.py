"""Types of nodes: each is computed by running the op on fake tensors, never guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

from sparsify.exclusive import exclusive
from sparsify.ir.bounds import within_bounds
from sparsify.ir.program import Program

# Hint sizes of symbolic dimensions: distinct, so that duck shaping ties equal names and nothing else.
_HINTS = (5, 13, 17, 19, 23, 29, 31, 37)
_KEY = "sparsify_types"


@dataclass(frozen=True)
class _Types:
    """Types computed so far for programs with the same inputs; a program and its clones share them.

    `seen` holds the type of each op by its arguments' types: passes change few nodes, and the layers of
    a model repeat each other, so that most ops need not be run again.
    """

    signature: Any
    mode: FakeTensorMode
    inputs: Mapping[str, Tensor]
    seen: dict[Any, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> "_Types":
        return self  # what nodes of a clone are typed with is shared as well

    @classmethod
    def of(cls, program: Program) -> "_Types":
        """Those the program carries; fresh ones when its inputs or the sizes behind symbols have changed."""
        held: _Types | None = program.module.meta.get(_KEY)
        signature = _signature(program)
        if held is not None and held.signature == signature and not _replaced(held.mode):
            return held
        mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=True), allow_non_fake_inputs=True)
        # Torch's own cache checks what it keeps by making it twice, and `seen` asks for nothing twice.
        mode.cache_enabled = False
        made = cls(signature, mode, _symbolic_inputs(program, mode))
        program.module.meta[_KEY] = made
        return made


def _signature(program: Program) -> Any:
    """What decides the types of a program's inputs."""
    sample = {k: (v.dtype, v.device, tuple(v.shape)) for k, v in program.sample.items()}
    return sample, {key: dict(dims) for key, dims in program.dynamic.items()}


def _replaced(mode: FakeTensorMode) -> bool:
    return mode.shape_env is not None and bool(mode.shape_env.replacements)


def propagate(program: Program) -> None:
    """Type every node of the program afresh: `node.meta["val"]` becomes a fake tensor or a size."""
    for node, value in infer(program).items():
        node.meta["val"] = value


@exclusive
def infer(program: Program) -> dict[fx.Node, Any]:
    """The type of every node, computed on fake tensors with symbolic sizes for `program.dynamic`."""
    types = _Types.of(program)
    values: dict[fx.Node, Any] = {}
    keys: dict[fx.Node, Any] = {}
    with types.mode, enable_python_dispatcher(), torch.no_grad():
        for node in program.graph.nodes:
            values[node] = _typed(program, node, values, keys, types)
            keys[node] = _type_key(values[node])
    return values


@exclusive
def type_node(program: Program, node: fx.Node) -> None:
    """Type one new node from its already typed arguments."""
    types = _Types.of(program)
    known = {argument: argument.meta["val"] for argument in node.all_input_nodes}
    keys = {argument: _type_key(value) for argument, value in known.items()}
    with types.mode, enable_python_dispatcher(), torch.no_grad():
        node.meta["val"] = _typed(program, node, known, keys, types)


def _typed(
    program: Program,
    node: fx.Node,
    known: Mapping[fx.Node, Any],
    keys: Mapping[fx.Node, Any],
    types: _Types,
) -> Any:
    """The type of a node, from those of its arguments."""
    if node.op == "placeholder":
        return types.inputs[str(node.target)]
    if node.op == "output":
        return fx.node.map_arg(node.args, lambda n: known[n])[0]
    if node.op == "get_attr":
        tensor = program.tensor(str(node.target))
        call = _type_key(tensor)
        if call not in types.seen:
            # A fresh view: the mode would remember the tensor itself, whose shape may change.
            types.seen[call] = types.mode.from_tensor(tensor.detach(), static_shapes=True)
        return types.seen[call]
    call = _call_key(node, keys)
    if call not in types.seen:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
        types.seen[call] = within_bounds(node.target, args, kwargs)
    return types.seen[call]


def _call_key(node: fx.Node, keys: Mapping[fx.Node, Any]) -> Any:
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


def _symbolic_inputs(program: Program, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Fake inputs; a dimension called `a+b` is the sum of those that are called `a` and `b`."""
    terms = [name.split("+") for dims in program.dynamic.values() for name in dims.values()]
    hints = dict(zip(sorted({name for parts in terms for name in parts}), _HINTS, strict=False))
    for key, dims in program.dynamic.items():
        for i, name in dims.items():
            if name in hints and program.sample[key].shape[i] > _HINTS[-1]:
                # What needs a long input, as a sound through strides, gets one.
                hints[name] = program.sample[key].shape[i] + hints[name]
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
