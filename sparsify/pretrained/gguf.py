"""A model in one GGUF file, as llama.cpp has them: weights become plain numbers, and the config says so."""

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sparsify.errors import DataError, reason_of
from sparsify.pretrained.completeness import check_loaded
from sparsify.pretrained.quiet import quiet

_MAGIC = b"GGUF"
# What the library holds a model to be packed by, and refuses to save it.
_OF_PACKED = ("hf_quantizer", "is_quantized", "quantization_method")
# Entries of a config that speak of the file and not of the model.
_OF_THE_FILE = ("quantization_config", "_pre_quantization_dtype", "_model_name_or_path")


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def load_gguf(
    path: Path, name: str, dtype: torch.dtype, *, partial: bool
) -> tuple[PreTrainedModel, Any]:
    """The model and the tokenizer of a GGUF file, weights unpacked to `dtype`.

    Raises DataError for an architecture that transformers cannot read from GGUF, tensors that are not those
    of its class, a damaged file, and where the package gguf is not installed.
    """
    if find_spec("gguf") is None:
        raise DataError(
            f"'{name}' is a GGUF file, which the package gguf reads; pip install 'sparsify-fx[gguf]'"
        )
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # The reader draws a bar of its own, which nothing switches off.
    silent = contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet(), silent, warnings.catch_warnings(action="ignore"):
            config = AutoConfig.from_pretrained(**where)
            auto: Any = AutoModelForCausalLM
            model, found = auto.from_pretrained(
                **where, config=config, dtype=dtype, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # of the reader and of the library, whatever a file makes them raise
        raise DataError(f"no model could be loaded from '{name}': {reason_of(error)}") from error
    check_loaded(type(model).__name__, name, found, partial=partial)
    _cleaned(model, path)
    return model, tokenizer


def _cleaned(model: PreTrainedModel, path: Path) -> None:
    """Let the config say what the model is now: its class, its file, and not how its weights were packed."""
    config = model.config
    for holder, keys in (*((m, _OF_PACKED) for m in model.modules()), (config, _OF_THE_FILE)):
        for key in keys:
            if key in vars(holder):
                delattr(holder, key)
    config.architectures = [type(model).__name__]
    config._name_or_path = str(path.resolve())
