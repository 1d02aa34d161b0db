"""Trace a Hugging Face model, or any module with example inputs, into a program.

Recipe: one `torch.export` in training IR (linear, attention, norms and dropout stay whole), normalised,
rebuilt as a plain graph module that shares its parameters with the model, and typed.
"""

import contextlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsify.errors import TraceError, reason_of
from sparsify.exclusive import exclusive
from sparsify.ir.mode import set_training
from sparsify.ir.ops.allowed import allowed
from sparsify.ir.program import Program, Source
from sparsify.ir.trace.canonical import normalise, plain
from sparsify.ir.trace.check import check_traced, reach_ends
from sparsify.ir.trace.example_inputs import example_inputs
from sparsify.ir.trace.exported import Dynamic, Exported, first_that_holds, varying_dims
from sparsify.ir.trace.known import known
from sparsify.ir.trace.unchanged import unchanged
from sparsify.ir.trace.wrappers import unwrapped
from sparsify.ir.types import propagate
from sparsify.pretrained.companions import generation_defaults, tool_files
from sparsify.pretrained.origin import origin_of, without_places


@exclusive
def trace(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    dynamic: Dynamic | None = None,
    *,
    tokenizer: Any = None,
    check: bool = True,
    copy: bool = False,
) -> Program:
    """The program of a model; its parameters are the model's own tensors, so that passes edit the model too.

    A Hugging Face model needs nothing else: token ids, masks and positions are made up. Any other module
    needs `inputs` by argument name, and `dynamic` to say which of their dimensions vary. In evaluation mode
    the program is what the model is in evaluation mode, whatever mode it is in now; dropout stays as a
    switch. What stands around a model (DataParallel, `torch.compile`) is taken off. The model is given
    back as it was: modes, buffers, hooks and random state too.

    `check`: compare the program with the model at two other shapes, with padding, and twice; it costs 2 %
    of tracing the embedded model. `copy`: give the program weights of its own, tied ones stay tied.
    Raises TraceError naming the op or line that `torch.export` could not follow, the module that draws
    random numbers or keeps state in evaluation mode, or the output that the program has otherwise; and
    for adapters and sharded weights.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace takes a model, and {type(model).__name__} is none; load it first")
    model = unwrapped(model)
    with unchanged(model):
        program = _traced(model, inputs, dynamic, tokenizer, check)
    return program.clone() if copy else program


def _traced(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None,
    dynamic: Dynamic | None,
    tokenizer: Any,
    check: bool,
) -> Program:
    if isinstance(model, PreTrainedModel):
        sample, dims = _made_up(model) if inputs is None else (dict(inputs), dynamic or {})
        config, fixed = without_places(_as_json(model.config.to_dict())), _fixed_arguments(model)
        generation = _as_json(generation_defaults(model))
        files, origin = tool_files(model), origin_of(model)
    else:
        if inputs is None:
            raise TraceError("a plain module needs example inputs by argument name to be traced")
        sample, dims, config, fixed = dict(inputs), dynamic or {}, {}, {}
        generation, files, origin = {}, {}, {}
    if dynamic is not None:
        dims = dynamic

    def program_at(names: Sequence[str]) -> Program:
        """The program that takes the numbers of some inputs as they are."""
        rest = {name: value for name, value in sample.items() if name not in names}
        given = fixed | {name: known(sample[name].cpu()) for name in names}

        def program_of(exported: Exported) -> Program:
            source = Source(config, type(model).__name__, exported.output_class, exported.outputs)
            varying = varying_dims(dims, exported.shapes)
            made = built(model, exported.module, dict(rest), varying, source, tokenizer)
            shapes = {path: tuple(value.shape) for path, value in made.module.named_parameters()}
            made.limits = dict(exported.limits)
            made.source = replace(
                source,
                shapes=shapes,
                generation=generation,
                files=files,
                origin=origin,
                known={name: sample[name].tolist() for name in names},
            )
            if check:
                check_traced(made, model, given, exported.shapes)
                reach_ends(made, model, given, exported)
            _tell_fixed(made, dims, exported.numbers)
            return made

        return first_that_holds(model, rest, dims, given, program_of)

    return _with_least_known(program_at, _countable(model, sample, dims))


def _with_least_known(
    program_at: Callable[[Sequence[str]], Program], names: Sequence[str]
) -> Program:
    """The program that takes the numbers of the fewest inputs as they are; the first TraceError if none."""
    try:
        return program_at(())
    except TraceError as error:
        first = error
    for count in range(1, len(names) + 1):
        with contextlib.suppress(TraceError):
            return program_at(names[:count])
    raise first


def _countable(model: nn.Module, sample: Mapping[str, Tensor], dims: Dynamic) -> list[str]:
    """Inputs of whole numbers that may say sizes, the smallest first: none that varies, nor the main one."""
    main = getattr(model, "main_input_name", next(iter(sample)))
    found = [
        name
        for name, value in sample.items()
        if not value.is_floating_point() and not dims.get(name) and name != main
    ]
    return sorted(found, key=lambda name: sample[name].numel())


def _tell_fixed(program: Program, dims: Dynamic, lines: Sequence[str]) -> None:
    """Warn of dimensions and numbers that cannot vary: at others the model's code does other things."""
    fixed = {
        (what, program.sample[name].shape[dim])
        for name, entry in dims.items()
        for dim, what in entry.items()
        if name in program.sample and dim not in program.dynamic.get(name, {})
    }
    for what, size in sorted(fixed):
        logging.getLogger("sparsify").warning(
            f"{program.source.model_class} can be followed at one size of '{what}' at a time, here {size}"
            f"{f' (by {lines[0]})' if lines else ''}; give inputs of the size that you need"
        )
    for name, numbers in program.source.known.items():
        logging.getLogger("sparsify").warning(
            f"{program.source.model_class} can be followed at one {name} at a time, here {numbers}; "
            "give inputs with those that you need"
        )


def _made_up(model: PreTrainedModel) -> tuple[dict[str, Tensor], Dynamic]:
    try:
        return example_inputs(model)
    except Exception as error:  # whatever the model's own code raises
        raise TraceError(
            f"{type(model).__name__} fails on inputs that were made up for it: {reason_of(error)[:300]}; "
            "give inputs of its kind by argument name"
        ) from error


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
    _refuse_strange_ops(program)
    program.aliases = _aliases(model, program.module)
    set_training(program.module, False)
    propagate(program)
    return program


def _refuse_strange_ops(program: Program) -> None:
    """Say at once what every pass and `save` would say: an op that no program may hold; TraceError."""
    for node in program.graph.nodes:
        if node.op == "call_function" and not allowed(node.target):
            raise TraceError(
                f"{program.source.model_class} could not be traced: the code in module "
                f"'{node.meta.get('module', '')}' calls '{node.target}', which is not an op of a program"
            )


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it comes back from disk, so that a saved program equals the traced one."""
    values: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return values


def _fixed_arguments(model: PreTrainedModel) -> dict[str, Any]:
    accepted = inspect.signature(model.forward).parameters
    fixed: dict[str, Any] = {"return_dict": True}
    if model.can_generate() or "use_cache" in accepted:
        fixed["use_cache"] = False
    return fixed


def _aliases(model: nn.Module, module: torch.fx.GraphModule) -> dict[str, str]:
    """Other names of tied parameters -> the name under which the graph reads the tensor."""
    holders = {id(parameter): path for path, parameter in module.named_parameters()}
    return {
        name: holders[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if holders.get(id(parameter), name) != name
    }
