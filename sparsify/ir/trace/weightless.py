"""A model without its weights: traced as ever, while every parameter is a hole in an empty file."""

import copy
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from sparsify.errors import DataError, reason_of
from sparsify.exclusive import exclusive
from sparsify.ir.program import Program
from sparsify.ir.trace.example_inputs import example_inputs
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.adapters import refuse_adapter
from sparsify.pretrained.architecture import class_of_config, config_at
from sparsify.pretrained.load import dtype_of, load_tokenizer, source_of
from sparsify.pretrained.quiet import quiet

_FEW = (1, 2, 4, 8)  # layers


@exclusive
def trace_weightless(name: str, dtype: str, *, trust_remote_code: bool = False) -> Program:
    """The program of a Hugging Face folder whose parameters take no memory and read as zeros.

    Shapes, names and buffers that the model computes for itself are real. `name` is a folder or
    `embedded`; code that comes with it runs only when trusted. Raises DataError when it is no folder of a
    model, TraceError as `trace` does.
    """
    source = source_of(name)
    if not Path(source).is_dir():
        raise DataError(f"'{name}' is no folder; download the model and name its folder")
    refuse_adapter(source)
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            config = config_at(source, name, trust_remote_code)
            make = class_of_config(config, source, name, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"no model could be loaded from '{name}': {reason_of(error)}") from error
    model = weightless(make, config, dtype_of(dtype))
    inputs, dynamic = _inputs_of_few_layers(make, config, dtype)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    # Without numbers there is nothing to compare.
    return trace(model, inputs, dynamic, tokenizer=tokenizer, check=False)


def _inputs_of_few_layers(
    make: Callable[..., PreTrainedModel], config: Any, dtype: str
) -> tuple[Any, Any]:
    """The inputs that a twin of few layers takes: whether positions are counted, a model must compute to say.

    One layer is enough where all are alike; others have attention in their second, fourth or eighth alone.
    """
    layers = getattr(config, "num_hidden_layers", 1)

    def inputs_of(count: int) -> tuple[Any, Any]:
        small = copy.deepcopy(config)
        if layers > 1:
            small.num_hidden_layers = count
        return example_inputs(_made(make, small, dtype_of(dtype), holes=False))

    *fewer, most = sorted({min(layers, count) for count in _FEW})
    for count in fewer:
        with suppress(ValueError, IndexError):
            return inputs_of(count)
    return inputs_of(most)


@exclusive
def weightless(
    make: Callable[..., PreTrainedModel], config: object, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of a config whose parameters take no memory and read as zeros."""
    return _made(make, config, dtype, holes=True)


def _made(
    make: Callable[..., PreTrainedModel], config: object, dtype: torch.dtype, *, holes: bool
) -> PreTrainedModel:
    """A model with random weights, or with holes in their place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with init_empty_weights(include_buffers=False) if holes else nullcontext():
                model = make(config)
    finally:
        torch.set_default_dtype(before)
    if holes:
        model.tie_weights()  # undone where modules registered their parameters once more
        _empty(model)
    model.eval()
    return model


def _empty(model: nn.Module) -> None:
    """Put in place of every parameter one that maps an empty file, the same for tied ones."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            hole = made.setdefault(
                id(parameter), nn.Parameter(hole_like(parameter), requires_grad=False)
            )
            setattr(module, name, hole)


def hole_like(like: torch.Tensor) -> torch.Tensor:
    """Zeros of a shape and dtype that take neither memory nor disk until they are written."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, max(1, like.numel() * like.element_size()))
        flat = torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype)
    return flat.view(like.shape)
