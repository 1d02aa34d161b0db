"""Trace a decoder with a key/value cache: one graph for the prompt and for each token after it.

    input_ids [batch, length], attention_mask [batch, past + length], position_ids [batch, length],
    past_key_values_N_key, past_key_values_N_value [batch, KV heads, past, size],
    past_key_values_N_conv [batch, channels, window], past_key_values_N_state [batch, ...]
    ->  logits [batch, length, vocabulary],
        present.N.key, present.N.value [batch, KV heads, past + length, size],
        present.N.conv, present.N.state as they came

A layer has what it has need of: keys and values, the last inputs of a convolution, the state of a recurrence.
The past may be empty, and states begin as zeros. Names are Optimum's, with `_` for `.` where Python has a
say. A decoder behind an encoder takes what that is given and `decoder_input_ids [batch, target length]`,
without a mask, and gives the keys and values of what was encoded last (`sparsify.ir.decode.encoder` parts
the two).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsify.errors import TraceError, reason_of
from sparsify.exclusive import exclusive
from sparsify.ir.decode.caches import DECODER_IDS, Held, output_names
from sparsify.ir.decode.encoder import Given
from sparsify.ir.decode.layers import Carried, Listed, behind_encoder
from sparsify.ir.program import Program, Source
from sparsify.ir.trace.canonical import Impure
from sparsify.ir.trace.exported import flat_forward
from sparsify.ir.trace.fixed_sizes import noting_fixed
from sparsify.ir.trace.scans import scans_as_ops
from sparsify.ir.trace.trace import built
from sparsify.ir.trace.unchanged import unremembering

BATCH, LENGTH, PAST = 2, 5, 7


# Said of tables that a model makes on its first run; once they are there it can be followed.
_LATE = "was assigned during export"


# How models call their cache; the last is a list of tensors.
CALLED = ("past_key_values", "cache_params", "state")


@exclusive
def trace_cached(
    model: PreTrainedModel,
    layers: Sequence[Sequence[Held]],
    source: Source,
    *,
    positions: bool,
    encoder: Sequence[Given] = (),
) -> Program:
    """The program of a model with caches; `layers` says what each layer of the model holds.

    `positions`: whether position ids are an input; `encoder`: what an encoder before the decoder is given.
    Raises TraceError where the model cannot be followed.
    """
    try:
        return _traced(model, layers, source, positions, encoder, first=False)
    except Impure:  # some scale their weights on their first run
        return _traced(model, layers, source, positions, encoder, first=True)


def _traced(
    model: PreTrainedModel,
    layers: Sequence[Sequence[Held]],
    source: Source,
    positions: bool,
    encoder: Sequence[Given],
    *,
    first: bool,
) -> Program:
    """The program, after a first run if so."""
    held = [item for layer in layers for item in layer]
    sample = _encoded_sample(model, encoder) if encoder else _sample(model, positions)
    dims = {name: _dims(name) for name in sample} | {item.name: item.dims for item in held}
    dims |= {given.name: dict(given.dims) for given in encoder}
    sample |= _pasts(held)
    running, lines = _Running(model, layers, bool(encoder)), list[str]()
    try:
        with (
            torch.no_grad(),
            noting_fixed(lines),
            scans_as_ops(model, running.asked),
            flat_forward(model, list(sample), running.call),
        ):
            if first:
                model(**sample)
            with unremembering(model):
                exported = _exported(model, sample, dims)
    except Exception as error:
        fixed = lines and "your code specialized it" in str(error)
        why = f"its code takes one size alone, by {lines[0]}" if fixed else reason_of(error)[:300]
        raise TraceError(
            f"{type(model).__name__} could not be traced with a cache: {why}"
        ) from error
    outputs = output_names(((item.layer, item.kind) for item in held), running.crosses)
    made = replace(source, outputs=outputs)
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


def _sample(model: PreTrainedModel, positions: bool) -> dict[str, Tensor]:
    mask = torch.ones(BATCH, PAST + LENGTH, dtype=torch.long)
    mask[1, :2] = 0  # padding on the left, so that masking is part of every comparison
    sample = {"input_ids": _ids(model), "attention_mask": mask}
    if positions:
        sample["position_ids"] = torch.arange(PAST, PAST + LENGTH).expand(BATCH, -1).contiguous()
    return sample


def _encoded_sample(model: PreTrainedModel, encoder: Sequence[Given]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = {given.name: given.made_up(model.config, BATCH, draw) for given in encoder}
    return {**made, DECODER_IDS: _ids(model)}


def _ids(model: PreTrainedModel) -> Tensor:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (BATCH, LENGTH), generator=draw)


def _pasts(held: Sequence[Held]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    shapes = {i.name: (BATCH, *(PAST if size is None else size for size in i.shape)) for i in held}
    return {
        item.name: torch.randn(shapes[item.name], generator=draw).to(item.dtype) for item in held
    }


def _dims(name: str) -> dict[int, str]:
    named = {"attention_mask": "length+past", DECODER_IDS: "target_length"}
    return {0: "batch", 1: named.get(name, "length")}


class _Running:
    """Runs a model on flat inputs and gives its caches flat."""

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[Sequence[Held]], encoder: bool
    ) -> None:
        accepted = inspect.signature(model.forward).parameters
        self.argument = next((name for name in CALLED if name in accepted), CALLED[0])
        self.kind: type[Carried | Listed] = Listed if self.argument == CALLED[-1] else Carried
        self.layers, self.caches, self.encoder = layers, self.kind([]), encoder
        self.crosses = 0  # layers that have read the encoder

    def asked(self) -> Tensor | None:
        """The state that the model has asked for last."""
        return self.caches.asked()

    def call(self, original: Callable[..., Any], **arguments: Tensor) -> tuple[Tensor, ...]:
        """Logits and caches of a model's own forward."""
        self.caches = self.kind(
            [{item.kind: arguments.pop(item.name) for item in layer} for layer in self.layers]
        )
        cache: Any = self.caches
        if self.encoder and isinstance(self.caches, Carried):
            cache = behind_encoder(self.caches)
        if not any(None in item.shape for layer in self.layers for item in layer):
            # Who keeps no past has a mask for the tokens that are given alone.
            length = arguments["input_ids"].shape[1]
            arguments["attention_mask"] = arguments["attention_mask"][:, -length:]
        # Some models hand what they are told of caches to their encoder too, which has none.
        asked = {} if self.encoder else {"use_cache": True}
        result = original(**arguments, **{self.argument: cache}, **asked)
        found = [result.logits]
        for place, layer in enumerate(self.layers):
            found += [self.caches.held(place, item.kind) for item in layer]
        return tuple(found + self._handed(cache))

    def _handed(self, cache: Any) -> list[Tensor]:
        """The keys and values of what was encoded, layer by layer."""
        layers = cache.cross_attention_cache.layers if self.encoder else []
        read = [layer for layer in layers if layer.keys is not None]
        self.crosses = len(read)
        return [value for layer in read for value in (layer.keys, layer.values)]
