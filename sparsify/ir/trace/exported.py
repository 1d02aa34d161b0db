"""Export a model: one `torch.export` with dropout on, and in other modes where that makes no program."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from transformers.utils.generic import ModelOutput

from sparsify.errors import TraceError, reason_of
from sparsify.ir.program import Program
from sparsify.ir.trace.canonical import Impure
from sparsify.ir.trace.conditions import within_conditions
from sparsify.ir.trace.conversions import idle_conversions
from sparsify.ir.trace.fixed_sizes import noting_fixed
from sparsify.ir.trace.known import Knowing, Known
from sparsify.ir.trace.made_up import SIGNALS
from sparsify.ir.trace.masks import broadcast_masks
from sparsify.ir.trace.scans import scans_as_ops
from sparsify.ir.trace.unchanged import unremembering
from sparsify.ir.trace.visits import EveryPlace

Dynamic = dict[str, dict[int, str]]
_LONGEST = 1 << 20
_FIXES = "Suggested fixes:"
# Modules that draw random numbers may hide behind each other; each round costs an export.
_ROUNDS = 3


@dataclass(frozen=True)
class Exported:
    """A model as `torch.export` gives it, the names and the class of its outputs, the sizes it takes.

    `limits` are the least and the most of those dimensions, by name, that the model's code bounds,
    `asked` the most that was asked for; `numbers` are lines of code that ask a size for its number.
    """

    module: torch.fx.GraphModule
    outputs: tuple[str, ...]
    output_class: str
    shapes: Mapping[str, Any]
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()


def first_that_holds(
    model: nn.Module,
    sample: dict[str, Tensor],
    dims: Dynamic,
    fixed: Mapping[str, Any],
    program_of: Callable[[Exported], Program],
) -> Program:
    """The program of the first mode in which the model can be followed and is a function of its inputs.

    Training mode comes first, so that dropout stays in the graph; then the modules whose code keeps state
    or draws other random numbers are in evaluation mode; last all of them. Changes modes of the model.
    Raises TraceError where none does.
    """
    shapes = _shapes(sample, dims, _longest(model))
    resting: frozenset[str] | None = frozenset()
    lines: list[str] = []
    for number in range(_ROUNDS + 1):
        _set_modes(model, resting)
        lines.clear()
        try:
            with noting_fixed(lines):
                exported = _export(model, sample, shapes, fixed)
            limits = _limits(dims, shapes, exported.shapes)
            asked = {size.__name__: size.max for e in shapes.values() for size in e.values()}
            return program_of(replace(exported, limits=limits, asked=asked, numbers=tuple(lines)))
        except Exception as error:
            failure = error
        if resting is None:
            break
        # `torch.export` raises whatever the model's code does.
        more = failure.modules if isinstance(failure, Impure) else frozenset()
        last = number == _ROUNDS - 1 or not (more - resting)
        resting = None if last else resting | more
    raise TraceError(_explain(model, failure)) from failure


def _set_modes(model: nn.Module, resting: frozenset[str] | None) -> None:
    """Training mode but for the modules at some paths; evaluation mode for `None`."""
    model.train(resting is not None)
    for path, part in model.named_modules():
        if resting is not None and path in resting:
            part.training = False


def _export(
    model: nn.Module, sample: dict[str, Tensor], shapes: Any, fixed: Mapping[str, Any]
) -> Exported:
    """Export; where the model bounds a dimension (by a table of positions, say), within its bounds.

    A size that the export cannot see to be free is tried with conditions left in the graph, and fixed last.
    """
    try:
        return _export_once(model, sample, shapes, fixed)
    except torch._dynamo.exc.UserError as error:
        first, refined = error, _refined(error, shapes)
    ways = [(shapes, True)]
    if refined is not None:
        ways = (
            [(shapes, True), (refined, False)] if _is_fixed(refined) else [(refined, False), *ways]
        )
    for sizes, conditions in ways:
        with contextlib.suppress(torch._dynamo.exc.UserError):
            return _export_once(model, sample, sizes, fixed, conditions=conditions)
    raise first


def _is_fixed(shapes: Any) -> bool:
    return any(isinstance(size, int) for entry in shapes.values() for size in entry.values())


def _export_once(
    model: nn.Module,
    sample: dict[str, Tensor],
    shapes: Any,
    fixed: Mapping[str, Any],
    *,
    conditions: bool = False,
) -> Exported:
    seen: dict[str, Any] = {}

    def call(original: Callable[..., Any], **arguments: Tensor) -> tuple[Tensor, ...]:
        knows = any(isinstance(value, Known) for value in fixed.values())
        with Knowing() if knows else contextlib.nullcontext():
            result = original(**arguments, **fixed)
        named = named_outputs(result)
        if not named:
            raise TraceError(f"{type(model).__name__} returns no floating-point tensor")
        kind = "Tensor" if isinstance(result, Tensor) else type(result).__name__
        seen["names"], seen["class"] = tuple(named), kind
        return tuple(named.values())

    with (
        unremembering(model),
        torch.no_grad(),
        scans_as_ops(model),
        flat_forward(model, list(sample), call),
    ):
        exported = torch.export.export(
            model,
            (),
            sample,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=conditions,
        )
    if conditions:
        shapes = within_conditions(exported, sample, shapes)
    module = exported.module(check_guards=False)
    return Exported(module, seen["names"], seen["class"], shapes)


def _refined(error: Exception, shapes: Any) -> Any:
    """The sizes that an error of `torch.export` suggests; None where it suggests none that can be read."""
    said, mark, suggested = str(error).partition(_FIXES)
    message = said + mark + suggested.strip().partition("\n\n")[0]  # what follows is no suggestion
    try:
        return refine_dynamic_shapes_from_suggested_fixes(message, shapes)
    except Exception:  # it parses the message, and fails in any way on one of another form
        return _below(message, shapes)


def _below(message: str, shapes: Any) -> Any:
    """Sizes that stop short of the one that takes another way: a table of positions that is not cut there."""
    at = re.search(r"values of (\w+) = .*generated guard .* != (\d+)\.", message)
    dims = {dim.__name__: dim for entry in shapes.values() for dim in entry.values()}
    if at is None or at[1] not in dims or int(at[2]) != dims[at[1]].max:
        return None
    below = torch.export.Dim(at[1], min=dims[at[1]].min, max=int(at[2]) - 1)
    return {
        key: {dim: below if size is dims[at[1]] else size for dim, size in entry.items()}
        for key, entry in shapes.items()
    }


def _longest(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    stated = int(getattr(config, "max_position_embeddings", None) or 0)
    return stated if stated > 2 else _LONGEST


def _explain(model: nn.Module, error: Exception) -> str:
    if isinstance(error, Impure):
        return f"{type(model).__name__} could not be traced: in evaluation mode too {error}"
    if isinstance(error, TraceError):
        return str(error)
    return (
        f"{type(model).__name__} could not be traced: {reason_of(error)[:300]} "
        "(try attn_implementation='eager', another experts implementation, or a fixed input shape)"
    )


@contextlib.contextmanager
def flat_forward(
    model: nn.Module, names: Sequence[str], call: Callable[..., tuple[Tensor, ...]]
) -> Iterator[None]:
    """Give the model a forward of exactly these arguments: `call(original, **arguments)`.

    The model stays the root, so that parameter names in the graph are those of its state dict.
    """
    original, own = model.forward, model.__dict__.get("forward")

    def forward(**arguments: Tensor) -> tuple[Tensor, ...]:
        return call(original, **arguments)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    model.forward = forward
    try:
        with idle_conversions(), broadcast_masks(), EveryPlace():
            yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.forward = own


def named_outputs(result: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a model's result by name, `loss` and caches left out."""
    if isinstance(result, Tensor):
        items = [("output", result)]
    elif isinstance(result, ModelOutput):
        items = [(item.name, getattr(result, item.name)) for item in fields(result)]  # type: ignore[arg-type]
    elif isinstance(result, tuple | list):
        items = [(f"output_{i}", value) for i, value in enumerate(result)]
    else:
        items = list(result.items()) if isinstance(result, dict) else []
    return {
        name: value
        for name, value in items
        if isinstance(value, Tensor) and value.is_floating_point() and name != "loss"
    }


def _shapes(sample: Mapping[str, Tensor], dims: Dynamic, longest: int) -> dict[str, Any]:
    """A dimension for each name; those of a sound have no positions, and begin at half of the sample."""
    sizes = {
        name: sample[key].shape[dim]
        for key, entry in dims.items()
        if key in sample
        for dim, name in entry.items()
    }
    symbols = {}
    for name, size in sorted(sizes.items()):
        least, most = (max(2, size // 2), _LONGEST) if name in SIGNALS else (2, longest)
        symbols[name] = torch.export.Dim(name, min=1 if name == "batch" else least, max=most)
    return {key: {dim: symbols[name] for dim, name in dims.get(key, {}).items()} for key in sample}


def _limits(
    dims: Dynamic, asked: Mapping[str, Any], taken: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """The ends of dimensions that an export has taken narrower than asked; 0 for a least as asked."""
    found = {}
    for key, entry in dims.items():
        for dim, what in entry.items():
            wide, narrow = (shapes.get(key, {}).get(dim) for shapes in (asked, taken))
            if wide is None or isinstance(narrow, int) or hasattr(narrow, "root"):
                continue
            if (narrow.min, narrow.max) != (wide.min, wide.max):
                least = 0 if narrow.min == wide.min else int(narrow.min)
                found[what] = least, int(narrow.max)
    return found


def varying_dims(dims: Dynamic, shapes: Mapping[str, Any]) -> Dynamic:
    """The symbolic dimensions without those that the export had to fix."""
    return {
        key: {dim: name for dim, name in entry.items() if not isinstance(shapes[key][dim], int)}
        for key, entry in dims.items()
        if key in shapes
    }
