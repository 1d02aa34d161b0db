"""The decode variant of a program: the same function with caches of what came before.

The model's class is traced once more, with caches and without weights. What passes decided is replayed on
it from the plan (layers, heads, channels, width, experts), then it takes the program's own tensors: dense
ones by name, packed ones and biases where the program has them.
"""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from sparsify.errors import TraceError, VerifyError, reason_of
from sparsify.ir.axes.shrink.keep import keep_from_json
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.decode.caches import CACHES, DECODER_IDS, INDEX, Held, empty_past
from sparsify.ir.decode.carry import take_over
from sparsify.ir.decode.drop import drop_dead_caches, remove_blocks
from sparsify.ir.decode.encoder import Given, crosses, encoder_inputs
from sparsify.ir.decode.layers import held_by
from sparsify.ir.decode.trace import CALLED, trace_cached
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.features.block_mask import KINDS
from sparsify.ir.features.catalogue import carried
from sparsify.ir.graph import output_nodes
from sparsify.ir.program import Program, Source
from sparsify.ir.run.unrounded import unrounded_outputs
from sparsify.ir.tensor_names import value_features
from sparsify.ir.trace.visits import EveryPlace
from sparsify.ir.trace.weightless import weightless
from sparsify.ir.types import propagate
from sparsify.pretrained.load import class_named, config_of
from sparsify.pretrained.quiet import quiet
from sparsify.pretrained.rope import switch_length
from sparsify.tensors.precision import relative_difference

_TOLERANCE = 1e-4
_BOTH = "is_encoder_decoder"  # of a config
# Traces that are kept: the variants that a process makes are mostly of a few models.
_KEPT = 8


def decoder(program: Program) -> Program:
    """The program with caches; it shares the tensors of the one it is made from.

    Inputs and outputs: see `sparsify.ir.decode.trace`. Raises TraceError for a model without a cache or a
    program that holds what passes still have to fold, VerifyError when the two do not agree.
    """
    left = program.features - carried() - value_features()
    if left:
        raise TraceError(
            f"the program still holds {', '.join(sorted(left))}; fold or remove it first"
        )
    made = _traced(program)
    # Axes first, while every tensor is there by which one of them may have been named.
    for keep in program.plan.get("axes", []):
        shrink(made, keep_from_json(keep), boundary=True)
    for kind in KINDS:
        for gone in program.plan.get(kind, []):
            remove_blocks(made, kind, gone)
    drop_dead_caches(made)
    if DECODER_IDS in made.sample and not crosses(made):
        raise TraceError("no layer of the decoder reads what was encoded any longer")
    take_over(made, program)
    propagate(made)
    made.tokenizer, made.log = program.tokenizer, list(program.log)
    made.limits = dict(program.limits)
    made.features = program.features
    _verify(made, program)
    _check_ids(made)
    return made


def _check_ids(made: Program) -> None:
    """Refuse a model whose likeliest id may be none that it takes; TraceError."""
    given = output_nodes(made)[0].meta["val"].shape[-1]
    taken = admission_of_program(made).vocabulary
    if taken is not None and isinstance(given, int) and given > taken:
        raise TraceError(
            f"the model chooses among {given:,} ids and takes {taken:,}: what it writes is no text that it "
            "could go on from"
        )


def check_decoder(program: Program) -> type[PreTrainedModel]:
    """The model class whose cache the variant would use; TraceError when there is none."""
    cls = class_named(program.source.model_class)
    if cls is None:
        raise TraceError(
            f"{program.source.model_class} is no class of transformers; only those have a cache"
        )
    if not cls.can_generate():
        raise TraceError(f"{cls.__name__} does not generate; a cache is for models that do")
    return cls


def _traced(program: Program) -> Program:
    check_decoder(program)
    dtype = next(p.dtype for p in program.module.parameters() if p.is_floating_point())
    config = json.dumps(dict(program.source.config), sort_keys=True)
    encoder = encoder_inputs(program) if program.source.config.get(_BOTH) else ()
    positions = "position_ids" in program.sample and not encoder
    made = _of_class(
        program.source.model_class, config, dtype, positions=positions, encoder=encoder
    ).shared()
    made.source = replace(program.source, outputs=made.source.outputs)
    return made


@functools.lru_cache(_KEPT)
def _of_class(
    name: str, config: str, dtype: torch.dtype, *, positions: bool, encoder: tuple[Given, ...]
) -> Program:
    """A variant before anything of a program is carried to it, without weights: never changed, but copied."""
    values, cls = json.loads(config), class_named(name)
    assert cls is not None
    with quiet():
        made = config_of(cls, values)
        if encoder:
            # There, since a forward may hand an argument to the encoder as well.
            made.use_cache = True
        layers = _held(cls, made, dtype, encoder)
        model = weightless(cls, made, dtype)
        source = Source(values, name, "", ())
        return trace_cached(model, layers, source, positions=positions, encoder=encoder)


def _held(
    cls: type[PreTrainedModel], config: Any, dtype: torch.dtype, encoder: Sequence[Given]
) -> list[list[Held]]:
    """What every layer of a model carries, from a run without numbers; layers are those of its cache."""
    refusal = f"{cls.__name__} has no cache that a decoder could carry along"
    with (
        torch.device("meta"),
        torch.no_grad(),
        mock.patch.object(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True),
        _AnyNumber(),  # type: ignore[no-untyped-call]
        EveryPlace(),
    ):
        # Attention spelled out, since some models ask the values of a mask which way it may go; and
        # products of experts exist on this device in bfloat16 alone.
        plain = copy.deepcopy(config)
        plain._attn_implementation = "eager"
        model = cls(plain).eval().to(torch.bfloat16)
        try:
            asked = {} if encoder else {"use_cache": True}
            result = model(**_without_numbers(encoder), **asked)
        except Exception as error:  # whatever the model's own code raises
            raise TraceError(
                f"{cls.__name__} fails with the cache that it makes itself: {reason_of(error)[:300]}"
            ) from error
    found = next((held for name in CALLED if (held := getattr(result, name, None))), None)
    found = getattr(found, "self_attention_cache", found)
    listed = [found] if isinstance(found, list) else []
    layers = [held_by(layer) for layer in getattr(found, "layers", None) or listed]
    if not any(layers):
        raise TraceError(refusal)
    number, held = 0, []
    for layer in layers:
        held.append([_of(number, kind, value, dtype) for kind, value in layer.items()])
        number += bool(layer)
    return held


class _AnyNumber(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers code that asks a tensor without numbers for one: the shapes of caches hang on none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An op, or 1 where a number is asked for, which is true."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def _without_numbers(encoder: Sequence[Given]) -> dict[str, Tensor]:
    """Inputs of a model that have shapes alone."""
    given = {
        item.name: torch.zeros(
            item.shape, dtype=torch.bfloat16 if item.dtype.is_floating_point else item.dtype
        )
        for item in encoder
    }
    rows = encoder[0].shape[0] if encoder else 1
    ids = torch.zeros(rows, 2, dtype=torch.long)
    return {**given, DECODER_IDS if encoder else "input_ids": ids}


def _of(layer: int, kind: str, value: Tensor, dtype: torch.dtype) -> Held:
    """What a layer holds in a model of a dtype, told from what it holds in one of bfloat16."""
    _, *shape = value.shape
    sizes: tuple[int | None, ...] = tuple(shape)
    if kind in CACHES:
        sizes = (shape[0], None, shape[2])
    elif kind == INDEX:
        sizes = (None, shape[1])
    return Held(layer, kind, sizes, dtype if value.dtype == torch.bfloat16 else value.dtype)


def _in_two_steps(made: Program, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch `[batch, length]`, whose second half sees the first through the caches.

    Without the rounding of inputs, which would make whole steps of last digits.
    """
    ids = DECODER_IDS if DECODER_IDS in batch else "input_ids"
    rows, length = batch[ids].shape
    past = dict(empty_past(made, rows))
    found = []
    # Keys from before a switch of the rotary angles are turned otherwise: both steps lie behind it.
    switch = switch_length(made.source.config)
    cut = length // 2 if switch is None or length <= switch else min(switch + 1, length - 1)
    for start, end in ((0, cut), (cut, length)):
        part = {**batch, ids: batch[ids][:, start:end]}
        if ids != DECODER_IDS:
            part = {name: value[:, start:end] for name, value in batch.items()}
            if "attention_mask" in batch:
                part["attention_mask"] = batch["attention_mask"][:, :end]
        logits, *caches = unrounded_outputs(made, {**part, **past})
        past = dict(zip(past, caches, strict=False))  # keys of an encoder are behind them
        found.append(logits)
    return torch.cat(found, 1)


def _verify(made: Program, program: Program) -> None:
    """The variant must give the program's logits on its sample, in two steps through its caches."""
    inputs: Mapping[str, Tensor] = program.sample
    wanted = unrounded_outputs(program, inputs)[0]
    batch = {name: inputs[name] for name in made.sample if name in inputs}
    found = _in_two_steps(made, batch)
    real = torch.ones(wanted.shape[:2], dtype=torch.bool)
    if "attention_mask" in inputs and DECODER_IDS not in inputs:
        real = inputs["attention_mask"].bool()  # what a row of padding gives means nothing
    moved = relative_difference(wanted[real], found[real])
    if not moved <= _TOLERANCE:
        raise VerifyError(
            f"the program with a cache gives logits that differ by {moved:.1e} of the largest from those "
            "without; export the program without a cache"
        )
