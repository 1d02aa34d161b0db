"""Example inputs for tracing a Hugging Face model: which inputs it takes, and made-up values."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsify.ir.mode import evaluating
from sparsify.ir.trace.beside import beside
from sparsify.ir.trace.made_up import BATCH, LENGTH, Inputs, ids_of, signals, vocabulary_of
from sparsify.tensors.precision import relative_difference

# Outputs that agree this far come from the same positions; other positions move them by far more.
_SAME = 1e-4
_IDS = "input_ids"
# What a model may be given instead of ids or pictures, not beside them.
_INSTEAD = ("embeds", "hidden_states")


def example_inputs(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Sample inputs and their symbolic dimensions.

    Token ids `[batch, length]` with the attention mask, and what else the forward takes: `position_ids`
    for generating models whose default is 0..length-1, `token_type_ids` where segments are embedded,
    `decoder_input_ids [batch, target length]`; pictures and sounds (`made_up.signals`). Where a model may
    mean several, the first that it takes, with what else its errors ask for by name (`beside`). Raises what
    the model does of the first when it takes none.
    """
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    choices = list(_choices(model, accepted, generator)) or [{}]
    chosen, failures = choices[0], list[Exception]()
    tried = [(choice, ()) for choice in choices] + [(choice, accepted) for choice in choices]
    for choice, names in tried:
        try:
            wanted = _with_asked(model, accepted, choice, generator, names)
            chosen = _growing(model, accepted, wanted, generator)
        except Exception as error:  # whatever the model's own code raises
            failures.append(error)
        else:
            break
    # Without numbers a model may fail for want of them.
    if len(failures) == len(tried) and not any(value.is_meta for value in model.parameters()):
        raise next((e for e in failures if not isinstance(e, TypeError)), failures[0])
    sample = {name: value for name, (value, _) in chosen.items()}
    return sample, {name: dims for name, (_, dims) in chosen.items()}


def _with_asked(
    model: PreTrainedModel,
    accepted: Mapping[str, inspect.Parameter],
    given: Inputs,
    generator: torch.Generator,
    names: Iterable[str] = (),
) -> Inputs:
    """What is given, what the forward cannot do without, what `names` asks for: where it can be made up."""
    needed = [name for name, each in accepted.items() if each.default is each.empty]
    asked = [name for name in names if name != _IDS and not name.endswith(_INSTEAD)]
    found = dict(given)
    for name in (*needed, *asked):
        made = None if name in found else beside(name, model.config, found, generator)
        if made is not None:
            found[name] = made
    return found


def _growing(
    model: PreTrainedModel,
    accepted: Mapping[str, inspect.Parameter],
    given: Inputs,
    generator: torch.Generator,
) -> Inputs:
    """Inputs that a model takes: those given, and those of its arguments that its errors name.

    Raises what the model's own code raises when that leads nowhere.
    """
    while True:
        try:
            _try(model, given)
        except Exception as error:
            words = set(re.findall(r"\w+", str(error).lower()))
            named = [name for name in accepted if name.lower() in words]
            more = _with_asked(model, accepted, given, generator, named)
            if more.keys() == given.keys():
                raise
            given = more
        else:
            return given


def _choices(
    model: PreTrainedModel, accepted: Mapping[str, inspect.Parameter], generator: torch.Generator
) -> Iterator[Inputs]:
    """What the model may take: what it names as its main input first, alone, then with all else."""
    texts = _text(model, accepted, generator) if _IDS in accepted else {}
    others = list(signals(model.config, accepted, generator))
    target = _target(model, accepted, generator)
    if model.main_input_name == _IDS and texts:
        yield {**texts, **target}
    for signal in others:
        yield {**signal, **target}
        if texts:
            yield {**texts, **signal, **target}
    if texts and model.main_input_name != _IDS:
        yield {**texts, **target}


def _text(
    model: PreTrainedModel, accepted: Mapping[str, Any], generator: torch.Generator
) -> Inputs:
    sample = {_IDS: ids_of(model.config, generator)}
    if "attention_mask" in accepted:
        mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
        mask[1, -3:] = 0  # padding on the right, so that masking is part of every comparison
        sample["attention_mask"] = mask
    if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1:
        sample["token_type_ids"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    if "position_ids" in accepted and model.can_generate() and _counts_positions(model):
        sample["position_ids"] = torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous()
    return {name: (value, {0: "batch", 1: "length"}) for name, value in sample.items()}


def _target(
    model: PreTrainedModel, accepted: Mapping[str, Any], generator: torch.Generator
) -> Inputs:
    """What a decoder behind an encoder begins with."""
    if not model.config.is_encoder_decoder or "decoder_input_ids" not in accepted:
        return {}
    ids = ids_of(model.config, generator)[:, : LENGTH - 4].contiguous()
    return {"decoder_input_ids": (ids, {0: "batch", 1: "target_length"})}


def _try(model: PreTrainedModel, inputs: Inputs) -> None:
    """Run a model on inputs; whatever it raises."""
    place = next(model.parameters())
    given = {
        name: value.to(place.device, place.dtype if value.is_floating_point() else None)
        for name, (value, _) in inputs.items()
    }
    with evaluating(model), torch.no_grad():
        model(**given)


def _counts_positions(model: PreTrainedModel) -> bool:
    """Whether the model's own default positions are 0..length-1 whatever the padding.

    Some models derive positions from the attention mask; handing them 0..length-1 would change what
    they compute on left-padded input. Asked of the model itself, on four tokens.
    """
    if model.config.is_encoder_decoder or any(p.is_meta for p in model.parameters()):
        return not model.config.is_encoder_decoder
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 5, 6]], device=device) % vocabulary_of(model.config)
    mask = torch.tensor([[0, 1, 1, 1]], device=device)
    positions = torch.arange(4, device=device)[None]
    try:
        with evaluating(model), torch.no_grad():
            default = model(input_ids=ids, attention_mask=mask, use_cache=False)
            counted = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
    except Exception:  # whatever the model's own code raises: it takes no text alone
        return False
    return relative_difference(default[0][:, 1:], counted[0][:, 1:]) <= _SAME
