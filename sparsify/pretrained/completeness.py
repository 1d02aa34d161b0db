"""Whether the files of a model held exactly the tensors that its class has."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sparsify.errors import DataError

NOTHING: Mapping[str, Any] = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
_SHOWN = 3
# What wrappers put before the name of every tensor, and what writes it.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "peft",
}
# Buffers that files of former releases hold, and that a model works out for itself today.
_FORMER = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"attn\.(masked_)?bias$")


def check_loaded(
    kind: str, name: str, found: Mapping[str, Any], *, partial: bool | None = None
) -> None:
    """Hold what the model library says of a loading against what is right.

    `found` names `missing_keys`, `unexpected_keys` and `mismatched_keys` (name, shape in the file, shape
    of the model), without those that the class itself gives up. Raises DataError; with `partial`, only
    for sizes, and says in a warning what is random. None is for places where there is no such choice.
    """
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    sizes = [
        f"{path} is {list(file)} in the files and {list(model)} in the model"
        for path, file, model in sorted(found["mismatched_keys"])
    ]
    parts = [
        *([f"{len(missing)} missing ({_some(missing)})"] if missing else []),
        *([f"{len(unexpected)} unexpected ({_some(unexpected)})"] if unexpected else []),
        *([f"{len(sizes)} of another size ({_some(sizes)})"] if sizes else []),
    ]
    if not parts:
        return
    said = f"the tensors of '{name}' are not those of {kind}: {', '.join(parts)}"
    if partial and not sizes:
        if missing:
            said += "; those that are missing are random"
        logging.getLogger("sparsify").warning(said)
        return
    raise DataError(f"{said}; {_advice(missing, unexpected, bool(sizes), partial)}")


def shape_of_model(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose tensors have shapes and no values."""
    with torch.device("meta"):
        return cls(config)


def differences(model: PreTrainedModel, held: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the model library would find missing, unexpected and of another size, from names and shapes alone.

    `model` may be one of `shape_of_model`; `held` are the shapes of the tensors in the files, with or without
    the name of the body in front; the result is as `check_loaded` takes it. Tied tensors may stand once.
    """
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    wanted = {
        name: tuple(value.shape)
        for name, value in revert_weight_conversion(model, model.state_dict()).items()
    }
    names = {_spelt(name, wanted, model.base_model_prefix): name for name in held}
    given = {*tied, *(other for one, other in tied.items() if one in names)}
    missing = [name for name in wanted if name not in names and name not in given]
    unexpected = [name for spelt, name in names.items() if spelt not in wanted]
    return {
        "missing_keys": _but(missing, model._keys_to_ignore_on_load_missing),
        "unexpected_keys": _but(
            unexpected, {*(model._keys_to_ignore_on_load_unexpected or ()), *_FORMER}
        ),
        "mismatched_keys": [
            (spelt, held[name], wanted[spelt])
            for spelt, name in names.items()
            if spelt in wanted and held[name] != wanted[spelt]
        ],
    }


def _spelt(name: str, wanted: Mapping[str, Any], body: str) -> str:
    """The name that a model has for a tensor which may lack or bear the name of its body."""
    spellings = (name, f"{body}.{name}", name.removeprefix(f"{body}."))
    return next((spelling for spelling in spellings if spelling in wanted), name)


def _but(names: Iterable[str], patterns: Iterable[str] | None) -> list[str]:
    """The names that no pattern is found in."""
    return [name for name in names if not any(re.search(p, name) for p in patterns or ())]


def _advice(
    missing: Sequence[str], unexpected: Sequence[str], sizes: bool, partial: bool | None
) -> str:
    prefix = _prefix(missing, unexpected)
    if prefix:
        writer = _WRAPPERS.get(prefix)
        by = f", as {writer} puts it" if writer else ""
        return (
            f"every name in the files has '{prefix}' before it{by}; "
            "save the model itself, not what wraps it"
        )
    if sizes:
        return "config.json and the weights are not of one model"
    choice = "" if partial is None else ", or give allow_partial=True (--allow-partial)"
    return f"mend the config or the files{choice}"


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What stands before every name in the files that the model wants without it; empty for nothing."""
    if not missing or not unexpected:
        return ""
    first = missing[0]
    before = {name.removesuffix(first) for name in unexpected if name.endswith(first)}
    held = set(unexpected)
    fits = (p for p in sorted(before, key=len) if all(p + name in held for name in missing))
    return next(fits, "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
