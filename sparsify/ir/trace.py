"""Trace a Hugging Face model, or any module with example inputs, into a program.

Recipe: one `torch.export` in training IR (linear, attention, norms and dropout stay whole), normalised,
rebuilt as a plain graph module that shares its parameters with the model, and typed.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from sparsify.errors import TraceError
from sparsify.ir.inputs import example_inputs
from sparsify.ir.modes import set_training
from sparsify.ir.normalise import normalise, plain
from sparsify.ir.program import Program, Source
from sparsify.ir.surroundings import generation_defaults, tool_files
from sparsify.ir.types import propagate
from sparsify.ir.wrappers import unwrapped

Dynamic = dict[str, dict[int, str]]
_LONGEST = 1 << 20


def trace(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    dynamic: Dynamic | None = None,
    *,
    tokenizer: Any = None,
) -> Program:
    """The program of a model; its parameters are the model's own tensors.

    A Hugging Face model needs nothing else: token ids, masks and positions are made up. Any other module
    needs `inputs` by argument name, and `dynamic` to say which of their dimensions vary.
    What stands around a model (DataParallel, `torch.compile`) is taken off. Raises TraceError naming the op
    or line that `torch.export` could not follow, and for adapters and sharded weights.
    """
    model = unwrapped(model)
    if isinstance(model, PreTrainedModel):
        sample, dims = example_inputs(model) if inputs is None else (dict(inputs), dynamic or {})
        config, fixed = _as_json(model.config.to_dict()), _fixed_arguments(model)
        generation, files = _as_json(generation_defaults(model)), tool_files(model)
    else:
        if inputs is None:
            raise TraceError("a plain module needs example inputs by argument name to be traced")
        sample, dims, config, fixed = dict(inputs), dynamic or {}, {}, {}
        generation, files = {}, {}
    if dynamic is not None:
        dims = dynamic
    exported, outputs, output_class = _export(model, sample, dims, fixed)
    source = Source(config, type(model).__name__, output_class, outputs)
    program = built(model, exported, sample, dims, source, tokenizer)
    shapes = {path: tuple(value.shape) for path, value in program.module.named_parameters()}
    program.source = replace(source, shapes=shapes, generation=generation, files=files)
    return program


def built(
    model: nn.Module,
    exported: torch.fx.GraphModule,
    sample: dict[str, Tensor],
    dims: Dynamic,
    source: Source,
    tokenizer: Any,
) -> Program:
    """The program of a module that `torch.export` has made of a model."""
    program = Program(
        module=plain(normalise(exported), list(sample)),
        sample=sample,
        dynamic=dims,
        source=source,
        tokenizer=tokenizer,
    )
    program.aliases = _aliases(model, program.module)
    set_training(program.module, False)
    propagate(program)
    return program


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it comes back from disk, so that a saved program equals the traced one."""
    values: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return values


def _export(
    model: nn.Module, sample: dict[str, Tensor], dims: Dynamic, fixed: Mapping[str, Any]
) -> tuple[torch.fx.GraphModule, tuple[str, ...], str]:
    """Export in training mode, so that dropout stays in the graph; in evaluation mode where that fails."""
    was_training = model.training
    shapes = _shapes(sample, dims, _longest(model))
    try:
        for training in (True, False):
            model.train(training)
            try:
                return _export_once(model, sample, shapes, fixed)
            except torch._dynamo.exc.UserError as error:
                # The model bounds a dimension (a table of positions, say): take the bounds it names.
                refined = _refined(error, shapes)
                if refined is not None:
                    return _export_once(model, sample, refined, fixed)
                failure: Exception = error
            except TraceError:
                raise
            except Exception as error:
                failure = error
    finally:
        model.train(was_training)
    raise TraceError(_explain(model, failure)) from failure


def _export_once(
    model: nn.Module, sample: dict[str, Tensor], shapes: Any, fixed: Mapping[str, Any]
) -> tuple[torch.fx.GraphModule, tuple[str, ...], str]:
    seen: dict[str, Any] = {}

    def call(original: Callable[..., Any], **arguments: Tensor) -> tuple[Tensor, ...]:
        result = original(**arguments, **fixed)
        named = _named_outputs(result)
        if not named:
            raise TraceError(f"{type(model).__name__} returns no floating-point tensor")
        kind = "Tensor" if isinstance(result, Tensor) else type(result).__name__
        seen["names"], seen["class"] = tuple(named), kind
        return tuple(named.values())

    with torch.no_grad(), flat_forward(model, list(sample), call):
        exported = torch.export.export(model, (), sample, dynamic_shapes=shapes, strict=False)
    return exported.module(check_guards=False), seen["names"], seen["class"]


def _refined(error: Exception, shapes: Any) -> Any:
    try:
        return refine_dynamic_shapes_from_suggested_fixes(str(error), shapes)
    except Exception:
        return None


def _longest(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "max_position_embeddings", None) or _LONGEST)


def _explain(model: nn.Module, error: Exception) -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{type(model).__name__} could not be traced: {reason.strip()[:300]} "
        "(try attn_implementation='eager', another experts implementation, or a fixed input shape)"
    )


@contextlib.contextmanager
def flat_forward(
    model: nn.Module, names: Sequence[str], call: Callable[..., tuple[Tensor, ...]]
) -> Iterator[None]:
    """Give the model a forward of exactly these arguments: `call(original, **arguments)`.

    The model stays the root, so that parameter names in the graph are those of its state dict.
    """
    original = model.forward

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


def _named_outputs(result: Any) -> dict[str, Tensor]:
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


def _fixed_arguments(model: PreTrainedModel) -> dict[str, Any]:
    accepted = inspect.signature(model.forward).parameters
    fixed: dict[str, Any] = {"return_dict": True}
    if model.can_generate() or "use_cache" in accepted:
        fixed["use_cache"] = False
    return fixed


def _shapes(sample: Mapping[str, Tensor], dims: Dynamic, longest: int) -> dict[str, Any]:
    names = {name for entry in dims.values() for name in entry.values()}
    symbols = {
        name: torch.export.Dim("batch", min=1, max=_LONGEST)
        if name == "batch"
        else torch.export.Dim(name, min=2, max=longest)
        for name in sorted(names)
    }
    return {key: {dim: symbols[name] for dim, name in dims.get(key, {}).items()} for key in sample}


def _aliases(model: nn.Module, module: torch.fx.GraphModule) -> dict[str, str]:
    """Other names of tied parameters -> the name under which the graph reads the tensor."""
    holders = {id(parameter): path for path, parameter in module.named_parameters()}
    return {
        name: holders[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if holders.get(id(parameter), name) != name
    }
