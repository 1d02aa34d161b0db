"""Export a model: one `torch.export` with dropout on, and in other modes where that makes no program."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from transformers.utils.generic import ModelOutput

from sparsify.errors import TraceError, reason_of
from sparsify.ir.program import Program
from sparsify.ir.trace.canonical import Impure
from sparsify.ir.trace.fixed_sizes import noting_fixed
from sparsify.ir.trace.scans import scans_as_ops

Dynamic = dict[str, dict[int, str]]
_LONGEST = 1 << 20
# What torch.export says of a size of which the code made a number.
_FIXED = "your code specialized it"
# Modules that draw random numbers may hide behind each other; each round costs an export.
_ROUNDS = 3


@dataclass(frozen=True)
class Exported:
    """A model as `torch.export` gives it, the names and the class of its outputs, the sizes it takes."""

    module: torch.fx.GraphModule
    outputs: tuple[str, ...]
    output_class: str
    shapes: Mapping[str, Any]


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
            return program_of(exported)
        except Exception as error:
            failure = error
        if resting is None:
            break
        # `torch.export` raises whatever the model's code does.
        more = failure.modules if isinstance(failure, Impure) else frozenset()
        last = number == _ROUNDS - 1 or not (more - resting)
        resting = None if last else resting | more
    raise TraceError(_explain(model, failure, lines)) from failure


def _set_modes(model: nn.Module, resting: frozenset[str] | None) -> None:
    """Training mode but for the modules at some paths; evaluation mode for `None`."""
    model.train(resting is not None)
    for path, part in model.named_modules():
        if resting is not None and path in resting:
            part.training = False


def _export(
    model: nn.Module, sample: dict[str, Tensor], shapes: Any, fixed: Mapping[str, Any]
) -> Exported:
    """Export; where the model bounds a dimension (by a table of positions, say), within its bounds."""
    try:
        return _export_once(model, sample, shapes, fixed)
    except torch._dynamo.exc.UserError as error:
        refined = _refined(error, shapes)
        if refined is None:
            raise
    return _export_once(model, sample, refined, fixed)


def _export_once(
    model: nn.Module, sample: dict[str, Tensor], shapes: Any, fixed: Mapping[str, Any]
) -> Exported:
    seen: dict[str, Any] = {}

    def call(original: Callable[..., Any], **arguments: Tensor) -> tuple[Tensor, ...]:
        result = original(**arguments, **fixed)
        named = named_outputs(result)
        if not named:
            raise TraceError(f"{type(model).__name__} returns no floating-point tensor")
        kind = "Tensor" if isinstance(result, Tensor) else type(result).__name__
        seen["names"], seen["class"] = tuple(named), kind
        return tuple(named.values())

    with torch.no_grad(), scans_as_ops(model), flat_forward(model, list(sample), call):
        exported = torch.export.export(model, (), sample, dynamic_shapes=shapes, strict=False)
    module = exported.module(check_guards=False)
    return Exported(module, seen["names"], seen["class"], shapes)


def _refined(error: Exception, shapes: Any) -> Any:
    """The sizes that an error of `torch.export` suggests; None where it suggests none that can be read."""
    try:
        return refine_dynamic_shapes_from_suggested_fixes(str(error), shapes)
    except Exception:  # it parses the message, and fails in any way on one of another form
        return _below(str(error), shapes)


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
    return int(getattr(config, "max_position_embeddings", None) or _LONGEST)


def _explain(model: nn.Module, error: Exception, lines: Sequence[str]) -> str:
    name = type(model).__name__
    if isinstance(error, Impure):
        return f"{name} could not be traced: in evaluation mode too {error}"
    if isinstance(error, TraceError):
        return str(error)
    if lines and _FIXED in str(error):
        return (
            f"{name} could not be traced for sizes that vary: its code takes the one of the sample at "
            f"{lines[0]}; give inputs of the one shape that is wanted, with dynamic={{}}"
        )
    return (
        f"{name} could not be traced: {reason_of(error)[:300]} "
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
    names = {name for entry in dims.values() for name in entry.values()}
    symbols = {
        name: torch.export.Dim("batch", min=1, max=_LONGEST)
        if name == "batch"
        else torch.export.Dim(name, min=2, max=longest)
        for name in sorted(names)
    }
    return {key: {dim: symbols[name] for dim, name in dims.get(key, {}).items()} for key in sample}


def varying_dims(dims: Dynamic, shapes: Mapping[str, Any]) -> Dynamic:
    """The symbolic dimensions without those that the export had to fix."""
    return {
        key: {dim: name for dim, name in entry.items() if not isinstance(shapes[key][dim], int)}
        for key, entry in dims.items()
        if key in shapes
    }
