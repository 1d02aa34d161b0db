"""Bring an exported graph into canonical form and rebuild it as a plain, trainable graph module."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from sparsify.errors import TraceError
from sparsify.ir.mode import is_switch
from sparsify.ir.trace.constants import as_buffers
from sparsify.ir.trace.functional import Offence, functionalise, module_of
from sparsify.ir.trace.joins import as_joins
from sparsify.ir.trace.lengths import as_rest
from sparsify.ir.trace.pairs import as_pairs
from sparsify.ir.trace.picks import as_slices
from sparsify.ir.trace.products import as_linears
from sparsify.ir.trace.settled import drop_settled

aten = torch.ops.aten
_END = 9223372036854775807
# Ops that only say where they are or repeat their input.
_NAMES_ONLY = {aten.alias.default, aten.lift_fresh_copy.default, aten.detach.default}
# Other names of one op, by which rules know it.
_SPELLINGS = {aten.concat.default: aten.cat.default, aten.concatenate.default: aten.cat.default}
# Normalisations that change their running statistics where argument 5 is true: arguments 3 and 4.
_STATISTICS = {aten.batch_norm.default, aten.instance_norm.default}


class Impure(TraceError):
    """A graph that keeps state or draws random numbers; `modules` are the paths that have to do with it."""

    def __init__(self, offences: Sequence[Offence]) -> None:
        first = offences[0]
        where = f"in module '{first.module}'" if first.module else "in the model's own forward"
        super().__init__(f"the code {where} {first.what}")
        self.modules = frozenset(offence.module for offence in offences)


def normalise(module: fx.GraphModule) -> fx.GraphModule:
    """Drop guards, asserts and no-ops, inline gradient switches, make in-place ops functional, name linears.

    Raises Impure for what a function of the inputs cannot do: state, random numbers other than dropout,
    writes without a functional form, control flow.
    """
    for node in list(module.graph.nodes):
        is_guard = node.op == "call_module" and node.target == "_guards_fn"
        if is_guard or node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    _inline_gradient_switches(module)
    offences = functionalise(module)
    for node in list(module.graph.nodes):
        node.target = _SPELLINGS.get(node.target, node.target)
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.cat.default:
            _drop_empty_operands(module.graph, node)
        elif node.target is aten.squeeze.default:
            # By the dimensions that are 1: another that a pass makes 1 stays.
            sizes = node.all_input_nodes[0].meta["val"].shape
            ones = [dim for dim, size in enumerate(sizes) if isinstance(size, int) and size == 1]
            node.target, node.args = aten.squeeze.dims, (node.args[0], ones)
        elif node.target is aten.sort.default:
            _settle_order(node)
    drop_settled(module)
    _sweep(module.graph)
    as_pairs(module)
    as_joins(module)
    as_linears(module)
    as_slices(module)
    as_rest(module)
    as_buffers(module)
    _sweep(module.graph)
    offences += [found for node in module.graph.nodes if (found := _offence(node))]
    if offences:
        raise Impure(offences)
    return module


def _settle_order(node: fx.Node) -> None:
    """Leave equal entries in the order they came in, as ONNX's TopK does; `sort` by itself may swap them."""
    x, *rest = node.args
    order = dict(zip(("dim", "descending"), rest, strict=False))
    node.target, node.args = aten.sort.stable, (x,)
    node.kwargs = {"stable": True, **order, **node.kwargs}


def _sweep(graph: fx.Graph) -> None:
    """Erase what nobody reads; nothing is left that has an effect."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _offence(node: fx.Node) -> Offence | None:
    """What an op of a functional graph does that a program cannot."""
    target: Any = node.target
    if node.op not in ("call_function", "call_module"):
        return None
    if target in _STATISTICS and node.args[5] and isinstance(node.args[3], fx.Node):
        return Offence(f"changes its running statistics ({target})", module_of(node))
    if isinstance(target, torch._ops.HigherOrderOperator) or node.op == "call_module":
        return Offence(f"holds a region of its own ({target})", module_of(node))
    tags = getattr(target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not is_switch(node):
        return Offence(f"draws random numbers that are no dropout ({target})", module_of(node))
    return None


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
        new.meta = {"module": module_of(node)}
        copied[node] = new
    return fx.GraphModule(root, graph)


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
    if node.target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        # A dimension that is not 1 stays, where a runtime would refuse it.
        made = node.meta.get("val")
        return value is not None and made is not None and bool(value.dim() == made.dim())
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
