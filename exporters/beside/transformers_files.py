"""Files beside the weights, spelt so that releases of transformers before and after 5 read them alike."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from sparsify.disk.files import ABOUT, MOST_TOKENS, read_json, write_json
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import PACKED
from sparsify.pretrained.load import class_named, config_of
from sparsify.pretrained.quiet import quiet

_THETA, _PARTIAL = "rope_theta", "partial_rotary_factor"
# Entries that release 5 writes under another name and still understands.
_RENAMED = ("num_experts",)
# The class of release 5 for a tokenizer that is all in tokenizer.json, and its name in all releases.
_NEW_CLASS, _CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
# What the saving of a tokenizer says of the machine it was loaded on.
_OF_LOADING = ("is_local", "local_files_only", "name_or_path")


def spelt_for_all(config: PreTrainedConfig) -> dict[str, Any]:
    """Every entry of a config outright, since defaults differ between releases, in old words and new.

    Old words of rotary positions are left out where this release would understand something else by them:
    those models are younger than the words.
    """
    said = config.to_dict()
    said.pop("_name_or_path", None)
    for old in _RENAMED:
        entry = config.attribute_map.get(old)
        if entry in said:
            said[old] = said[entry]
    rope = said.get("rope_parameters")
    if not isinstance(rope, dict):
        return said
    both = {**said, **_older_rope(rope)}
    return both if _rope_of(config, both) == _rope_of(config, said) else said


def _rope_of(config: PreTrainedConfig, said: dict[str, Any]) -> Any:
    """The rotary positions that the config's class reads from some entries; None where it refuses them."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older words, which are there on purpose
            rope = type(config).from_dict(copy.deepcopy(said)).rope_parameters
    except (KeyError, ValueError, TypeError):
        return None
    # `type` is an older word too, and stands beside the newer one.
    return {
        kind: {key: entry for key, entry in value.items() if key != "type"}
        if isinstance(value, dict)
        else value
        for kind, value in rope.items()
        if kind != "type"
    }


def _older_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """The entries by which releases before 5 know what `rope_parameters` says, by kind of layer or for all.

    `rope_theta`, the frequency base of windowed layers, `partial_rotary_factor`, and `rope_scaling`, where
    the factors of long contexts stand alone.
    """
    whole = rope.get("full_attention") if "full_attention" in rope else rope
    windowed = rope.get("sliding_attention")
    said: dict[str, Any] = {}
    if windowed and _THETA in windowed:
        said |= dict.fromkeys(("rope_local_base_freq", "local_rope_theta"), windowed[_THETA])
    if not whole:
        return said
    if _THETA in whole:
        said[_THETA] = whole[_THETA]
    if _PARTIAL in whole:
        said |= dict.fromkeys((_PARTIAL, "rotary_pct"), whole[_PARTIAL])
        said["rotary_emb_base"] = whole.get(_THETA)
    kind = whole.get("rope_type", "default")
    if kind == "longrope":
        said["original_max_position_embeddings"] = whole.get("original_max_position_embeddings")
        said["rope_scaling"] = {"type": kind}
        said["rope_scaling"] |= {key: whole[key] for key in ("short_factor", "long_factor")}
    elif kind != "default":
        said["rope_scaling"] = {k: v for k, v in whole.items() if k not in (_THETA, _PARTIAL)}
    return said


def write_config(config: PreTrainedConfig, program: Program, folder: Path) -> None:
    """Write `config.json` with the program's class and number type, whatever the source said."""
    config.architectures = [program.source.model_class]
    config.dtype = dtype_of(program)
    write_json(folder / "config.json", spelt_for_all(config))


def write_beside(program: Program, folder: Path) -> None:
    """Write the defaults for generation, the tokenizer's files, and the settings of other tools."""
    cls = class_named(program.source.model_class)
    if cls is not None and cls.can_generate():
        config = config_of(cls, program.source.config)
        write_json(folder / "generation_config.json", generation_of(program, config))
    for path, text in program.source.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    if program.tokenizer is not None:
        write_tokenizer(program.tokenizer, folder)


def generation_of(program: Program, config: PreTrainedConfig) -> dict[str, Any]:
    """The model's own defaults for generation, or those that its config gives."""
    said = dict(program.source.generation)
    return said or GenerationConfig.from_model_config(config).to_diff_dict()


def write_about(
    program: Program,
    folder: Path,
    format: str,
    notes: Sequence[str] = (),
    most_tokens: int | None = None,
) -> None:
    """Write `sparsify.json`: what made the model, what it needs, and what whoever opens it should know.

    Beyond `most_tokens` the model's own code does something else than what is written.
    """
    about = {
        "format": format,
        "pipeline": " | ".join(program.log),
        "model_class": program.source.model_class,
        "packed": PACKED in program.features,
        "notes": list(notes),
    }
    if most_tokens is not None:
        said = (
            f"beyond {most_tokens} tokens the model's own code does something else than this file"
        )
        about |= {MOST_TOKENS: most_tokens, "notes": [*notes, said]}
    write_json(folder / ABOUT, about)


def slow_notes(program: Program) -> list[str]:
    """What a packed model wants of other tools."""
    if PACKED not in program.features:
        return []
    return [
        "other tools run the packed weights by the function in the file, right but slow, until "
        "'sparsify-fx kernels' has put the library for this machine into the folder"
    ]


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files under a class that all releases have."""
    with quiet():
        tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    said = {key: value for key, value in read_json(path).items() if key not in _OF_LOADING}
    if said.get("tokenizer_class") == _NEW_CLASS:
        said["tokenizer_class"] = _CLASS
    # The general class would give segment ids to models that take none.
    said["model_input_names"] = list(tokenizer.model_input_names)
    extra = said.get("extra_special_tokens")
    if isinstance(extra, list):
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    write_json(path, said)


def dtype_of(program: Program) -> torch.dtype:
    """The type of a program's numbers."""
    dtypes = (t.dtype for _, t in program.tensors() if t.is_floating_point())
    return next(dtypes, torch.float32)
