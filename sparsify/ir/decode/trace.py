"""Trace a decoder with a key/value cache: one graph for the prompt and for each token after it.

    input_ids [batch, length], attention_mask [batch, past + length], position_ids [batch, length],
    past_key_values_N_key, past_key_values_N_value [batch, KV heads, past, size]
    ->  logits [batch, length, vocabulary],
        present.N.key, present.N.value [batch, KV heads, past + length, size]

The past may be empty. Names are Optimum's, with `_` for `.` where Python has a say.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from sparsify.errors import TraceError, reason_of
from sparsify.exclusive import exclusive
from sparsify.ir.decode.caches import _PAST, CACHES, output_names, past_name
from sparsify.ir.program import Program, Source
from sparsify.ir.trace.exported import flat_forward
from sparsify.ir.trace.trace import built

BATCH, LENGTH, PAST = 2, 5, 7


# Said of tables that a model makes on its first run; once they are there it can be followed.
_LATE = "was assigned during export"


@exclusive
def trace_cached(
    model: PreTrainedModel, shapes: list[tuple[int, int, int]], source: Source, *, positions: bool
) -> Program:
    """The program of a model with caches; `shapes` are KV heads, key size and value size by layer.

    `positions`: whether position ids are an input. Raises TraceError where the model cannot be followed.
    """
    sample = _sample(model, shapes, positions)
    dims = {name: _dims(name) for name in sample}
    try:
        with torch.no_grad(), flat_forward(model, list(sample), _call(len(shapes))):
            exported = _exported(model, sample, dims)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} could not be traced with a cache: {reason_of(error)[:300]}"
        ) from error
    made = replace(source, outputs=output_names(len(shapes)))
    return built(model, exported.module(check_guards=False), sample, dims, made, None)


def _exported(
    model: PreTrainedModel, sample: dict[str, Tensor], dims: Mapping[str, dict[int, str]]
) -> torch.export.ExportedProgram:
    shapes = {n: dict.fromkeys(d, torch.export.Dim.DYNAMIC) for n, d in dims.items()}
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        return torch.export.export(model, (), sample, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        if _LATE not in str(error):
            raise
    for module, names in before.items():
        for name in set(vars(module)) - names:
            delattr(module, name)
    model(**sample)
    return torch.export.export(model, (), sample, dynamic_shapes=shapes, strict=False)


def _sample(
    model: PreTrainedModel, shapes: list[tuple[int, int, int]], positions: bool
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    low = min(3, vocabulary - 1)
    mask = torch.ones(BATCH, PAST + LENGTH, dtype=torch.long)
    mask[1, :2] = 0  # padding on the left, so that masking is part of every comparison
    sample = {
        "input_ids": torch.randint(low, vocabulary, (BATCH, LENGTH), generator=draw),
        "attention_mask": mask,
    }
    if positions:
        sample["position_ids"] = torch.arange(PAST, PAST + LENGTH).expand(BATCH, -1).contiguous()
    dtype = next(model.parameters()).dtype
    for layer, (heads, *sizes) in enumerate(shapes):
        for kind, size in zip(CACHES, sizes, strict=True):
            shape = (BATCH, heads, PAST, size)
            sample[past_name(layer, kind)] = torch.randn(shape, generator=draw).to(dtype)
    return sample


def _dims(name: str) -> dict[int, str]:
    if _PAST.fullmatch(name):
        return {0: "batch", 2: "past"}
    return {0: "batch", 1: "length+past" if name == "attention_mask" else "length"}


def _call(layers: int) -> Callable[..., tuple[Tensor, ...]]:
    """Runs a model on flat inputs and gives its caches flat."""

    def call(original: Callable[..., Any], **arguments: Tensor) -> tuple[Tensor, ...]:
        held = [
            tuple(arguments.pop(past_name(layer, kind)) for kind in CACHES)
            for layer in range(layers)
        ]
        # Without the config every layer keeps all it has seen; windows are the masks' business.
        result = original(**arguments, past_key_values=DynamicCache(held), use_cache=True)
        found = [result.logits]
        for layer in result.past_key_values.layers:
            found += [layer.keys, layer.values]
        return tuple(found)

    return call
