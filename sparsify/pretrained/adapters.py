"""Adapters in a folder: recognised, and added to the weights of their base when asked."""

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsify.disk.files import read_mapping
from sparsify.errors import DataError, reason_of
from sparsify.pretrained.completeness import check_loaded

CONFIG = "adapter_config.json"


def adapter_in(source: str) -> Path | None:
    """The folder itself when it holds an adapter, alone or beside a model."""
    return Path(source) if (Path(source) / CONFIG).is_file() else None


def refuse_adapter(source: str) -> None:
    """Refuse a folder with an adapter where none can be merged; DataError."""
    if adapter_in(source) is not None:
        raise DataError(
            f"'{source}' holds an adapter ({CONFIG}), which is no part of the weights; merge it first: "
            "sparsify.load_model(..., merge_adapter=True), then save_pretrained"
        )


def base_of(adapter: Path, name: str, *, merge: bool) -> str:
    """The folder or hub id of the model that an adapter belongs to.

    Raises DataError when it may not be merged, or names no model.
    """
    if not merge:
        raise DataError(
            f"'{name}' holds an adapter ({CONFIG}), which is no part of the weights; "
            "give merge_adapter=True (--merge-adapter) to add it to them, or take it out of the folder"
        )
    if (adapter / "config.json").is_file():
        return str(adapter)
    base = read_mapping(adapter / CONFIG).get("base_model_name_or_path")
    if not base:
        raise DataError(f"'{adapter / CONFIG}' names no base model; put the adapter beside one")
    return str(Path(base).resolve()) if Path(base).is_dir() else str(base)


@contextlib.contextmanager
def without_adapter(base: str) -> Iterator[str]:
    """A place from which the model alone is read: the model library would take in an adapter beside it."""
    if adapter_in(base) is None:
        yield base
        return
    with tempfile.TemporaryDirectory() as scratch:
        for path in Path(base).iterdir():
            if not path.name.startswith("adapter_"):
                (Path(scratch) / path.name).symlink_to(path)
        yield scratch


def adapter_at(folder: str) -> Path:
    """The folder of an adapter that is named by itself.

    Raises DataError where it holds none, and where the package peft is not installed.
    """
    found = adapter_in(folder)
    if found is None:
        raise DataError(
            f"'{folder}' holds no adapter ({CONFIG}); name a folder that peft has saved one in"
        )
    _peft(folder)
    return found


def warn_of_another_base(adapter: Path, name: str) -> None:
    """Warn where an adapter states that it was trained on a model of another name."""
    stated = str(read_mapping(adapter / CONFIG).get("base_model_name_or_path") or "")
    if stated and Path(stated).name != Path(name).resolve().name:
        logging.getLogger("sparsify").warning(
            f"the adapter in '{adapter}' was trained on '{stated}', and is put on '{name}'"
        )


def merged(model: PreTrainedModel, adapter: Path, name: str) -> PreTrainedModel:
    """The model with `W + scale B A` in place of every weight the adapter changes.

    Raises DataError without the package peft, for files that do not fit, and for adapters of another
    kind, which no weight can hold.
    """
    peft = _peft(name)
    try:
        with warnings.catch_warnings(action="ignore"):
            config = peft.PeftConfig.from_pretrained(str(adapter))
            if config.is_prompt_learning:
                kind = str(config.peft_type.value)
                raise DataError(f"a {kind} adds tokens, which no weight can hold")
            adapted = peft.PeftModel.from_pretrained(model, str(adapter))
            held = set(peft.utils.load_peft_weights(str(adapter), device="cpu"))
            wanted = set(peft.get_peft_model_state_dict(adapted))
            whole = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise DataError(
            f"the adapter in '{name}' could not be merged: {reason_of(error)}"
        ) from error
    found = {"missing_keys": wanted - held, "unexpected_keys": held - wanted, "mismatched_keys": ()}
    check_loaded(f"the adapter in its {CONFIG}", name, found)
    assert isinstance(whole, PreTrainedModel)
    return whole.requires_grad_(True)


def _peft(name: str) -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise DataError(
            f"merging the adapter in '{name}' needs the package 'peft'; "
            'run: pip install "sparsify-fx[peft]"'
        ) from error
