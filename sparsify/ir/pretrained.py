"""Load a Hugging Face model, from a folder or a hub id, with its tokenizer."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from sparsify.errors import DataError, OptionError
from sparsify.words import nearest

EMBEDDED = "embedded"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, dtype: str = "float32") -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer (None when it has none), in evaluation mode.

    `name` is a folder, a hub id, or `embedded` for the small model that comes with the package.
    Raises DataError when there is no such model or its files are damaged, OptionError for a dtype.
    """
    chosen, source = dtype_of(dtype), source_of(name)
    if Path(source).is_file():
        raise DataError(f"'{name}' is a file; a model is a folder or a hub id")
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # the config keeps it, and is read from other places
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            config = AutoConfig.from_pretrained(source)
            model: PreTrainedModel = class_of_config(config).from_pretrained(source, dtype=chosen)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"no model could be loaded from '{name}': {reason}") from error
    for path, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"the model '{name}' holds values that are not finite in '{path}'")
    return model.eval(), load_tokenizer(source)


def dtype_of(name: str) -> torch.dtype:
    """A floating-point type by name; OptionError for another."""
    if name not in _DTYPES:
        raise OptionError(f"no dtype is called '{name}'{nearest(name, _DTYPES)}")
    return _DTYPES[name]


def class_of_config(config: Any) -> Any:
    """The model class that a config names, `AutoModel` when it names none."""
    return getattr(transformers, (config.architectures or ["AutoModel"])[0], AutoModel)


def class_named(name: str) -> type[PreTrainedModel] | None:
    """The model class of transformers with a name; None when there is none."""
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def config_of(cls: type[PreTrainedModel], values: Mapping[str, Any]) -> PreTrainedConfig:
    """The config object of a model class with these entries."""
    assert cls.config_class is not None
    config = cls.config_class.from_dict(copy.deepcopy(dict(values)))
    assert isinstance(config, PreTrainedConfig)
    return config


def source_of(name: str) -> str:
    """The folder or hub id of a model's name: `embedded` lies inside the package."""
    return str(resources.files("sparsify") / "embedded") if name == EMBEDDED else name


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id; None when there is none."""
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the model library's bars and advice off the terminal, and leave its settings as they were."""
    logs: Any = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
