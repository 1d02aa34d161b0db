"""Bring an exported graph into canonical form and rebuild it as a plain, trainable graph module."""

import operator
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten
_END = 9223372036854775807
# Ops that only say where they are or repeat their input.
_NAMES_ONLY = {aten.alias.default, aten.lift_fresh_copy.default, aten.detach.default}


def normalise(module: fx.GraphModule) -> fx.GraphModule:
    """Drop guards, asserts and no-ops, inline gradient switches, make in-place ops functional."""
    for node in list(module.graph.nodes):
        is_guard = node.op == "call_module" and node.target == "_guards_fn"
        if is_guard or node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    _inline_gradient_switches(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.cat.default:
            _drop_empty_operands(module.graph, node)
    _functionalise(module.graph)
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            module.graph.erase_node(node)
    return module


def plain(module: fx.GraphModule, inputs: list[str]) -> fx.GraphModule:
    """A vanilla graph module with the same tensors; the exported one can neither train nor be copied.

    Placeholders are renamed to `inputs`, constants that tracing lifted become buffers, and the output
    is a flat tuple.
    """
    root = nn.Module()
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if path in read:
            _slot(root, path).register_parameter(path.rpartition(".")[2], parameter)
    tensors = dict(module.named_buffers(remove_duplicate=False))
    for path in sorted(read):
        if not _has(root, path):
            value = tensors[path] if path in tensors else _get(module, path)
            _slot(root, path).register_buffer(path.rpartition(".")[2], value)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    names = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            new = graph.placeholder(next(names))
        elif node.op == "output":
            new = graph.output(_flat(fx.node.map_arg(node.args[0], lambda n: copied[n])))
        else:
            new = graph.node_copy(node, lambda n: copied[n])
        new.meta = {"module": _module_of(node)}
        copied[node] = new
    return fx.GraphModule(root, graph)


def _module_of(node: fx.Node) -> str:
    """The path of the innermost module whose code made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _is_identity(node: fx.Node) -> bool:
    """Whether an op returns its first argument unchanged (by the types of the exported graph)."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    value = source.meta.get("val")
    if node.target in _NAMES_ONLY:
        return True
    if node.target is aten.to.dtype:
        return value is not None and bool(value.dtype == node.args[1])
    if node.target is aten.to.dtype_layout:
        if value is None or value.dtype != node.kwargs["dtype"]:
            return False
        return bool(value.device == node.kwargs.get("device", value.device))
    if node.target is aten.slice.Tensor and len(node.args) == 4:
        return node.args[2] in (0, None) and bool(node.args[3] == _END)
    return False


def _drop_empty_operands(graph: fx.Graph, node: fx.Node) -> None:
    """Lazily made key/value caches start as an empty 1-D tensor that `cat` skips."""
    operands = list(node.args[0])  # type: ignore[arg-type]
    kept = [x for x in operands if not (x.meta["val"].dim() == 1 and x.meta["val"].shape[0] == 0)]
    if len(kept) == 1 and len(operands) > 1:
        node.replace_all_uses_with(kept[0])
        graph.erase_node(node)
    elif 0 < len(kept) < len(operands):
        node.update_arg(0, kept)


def _functionalise(graph: fx.Graph) -> None:
    """`x.add_(y)` -> `x.add(y)` where nobody reads `x` afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        packet = getattr(aten, node.target.overloadpacket.__name__.rstrip("_"), None)
        overload = node.target._overloadname
        last_use = all(order[user] <= order[node] for user in node.args[0].users)
        if packet is not None and overload in packet.overloads() and last_use:
            node.target = getattr(packet, overload)


def _inline_gradient_switches(module: fx.GraphModule) -> None:
    """Replace each call of a wrapped `no_grad` region by the nodes of its body."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or "wrap_with_set_grad_enabled" not in str(node.target):
            continue
        body = _get(module, node.args[1].target)
        outputs = _splice(module.graph, node, body.graph, node.args[2:])
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def _splice(graph: fx.Graph, before: fx.Node, body: fx.Graph, args: Any) -> Any:
    known: dict[fx.Node, Any] = {}
    operands = iter(args)
    with graph.inserting_before(before):
        for node in body.nodes:
            if node.op == "placeholder":
                known[node] = next(operands)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: known[n])
            else:
                known[node] = graph.node_copy(node, lambda n: known[n])
    raise AssertionError("a graph ends with its output")


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple | list):
        return tuple(leaf for item in value for leaf in _flat(item))
    return (value,)


def _slot(root: nn.Module, path: str) -> nn.Module:
    owner = root
    for part in path.split(".")[:-1]:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    return owner


def _has(root: nn.Module, path: str) -> bool:
    return hasattr(_slot(root, path), path.rpartition(".")[2])


def _get(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value
