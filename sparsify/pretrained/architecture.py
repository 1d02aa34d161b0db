"""Which class of the model library a folder asks for; code that comes with a model runs only when asked."""

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from sparsify.errors import DataError, nearest

# The word by which the library says that it would have to run code of others.
_ASKED = "trust_remote_code"
MAIN = "main"  # the revision of a hub id that names none


def config_at(source: str, name: str, trust: bool = False, revision: str = MAIN) -> Any:
    """The config of a folder or hub id; DataError for one that needs code of its own."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust, revision=revision)
    except ValueError as error:
        if foreign_code(error):
            raise DataError(foreign_code(error, f"'{name}'")) from error
        raise
    refuse_kernels(config, f"'{name}'")
    return config


def refuse_kernels(config: PreTrainedConfig, what: str) -> None:
    """Refuse a config that names a repository of kernels for its attention: that is code; DataError."""
    parts = (config, *(getattr(config, key, None) for key in config.sub_configs))
    for part in parts:
        named = str(getattr(part, "_attn_implementation", None) or "")
        if "/" in named:
            raise DataError(
                f"{what} takes its attention from the repository '{named}', which is code of others; "
                "take attn_implementation out of its config"
            )


def foreign_code(error: Exception, what: str = "it") -> str:
    """The sentence for an error that says that code of others would have to run; empty for another."""
    if not isinstance(error, ValueError) or _ASKED not in str(error):
        return ""
    return (
        f"{what} comes with Python code of its own, which runs only when you say so: read it, then give "
        "trust_remote_code=True (--trust-remote-code)"
    )


def class_of_config(
    config: Any, source: str, name: str, trust: bool = False, revision: str = MAIN
) -> Any:
    """The model class that a config names, or the one for generation where it can mean no other.

    Raises DataError for a class that the model library does not know, and for a config that leaves
    open which one it wants.
    """
    named = next(iter(config.architectures or ()), None)
    if named is None:
        return _class_for_text(config, name)
    found = getattr(transformers, named, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    own = _own_class(config, named)
    if own is not None and trust:
        return get_class_from_dynamic_module(own, source, revision=revision)
    if own is not None:
        raise DataError(foreign_code(ValueError(_ASKED), f"'{name}'"))
    known = [word for word in dir(transformers) if word.startswith(named[:3])]
    raise DataError(
        f"'{name}' is a {named}, which transformers {transformers.__version__} does not know"
        f"{nearest(named, known) if known else ''}; install the version that its config.json names"
    )


def _own_class(config: Any, named: str) -> str | None:
    """Where the code of a class lies that comes with the model, as the library spells it."""
    places = getattr(config, "auto_map", None) or {}
    return next((p for p in places.values() if str(p).rpartition(".")[2] == named), None)


def _class_for_text(config: Any, name: str) -> Any:
    kind = type(config)
    reads_both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and not reads_both_ways:
        return MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    raise DataError(
        f"the config.json of '{name}' names no class of model, and a {config.model_type} may be several; "
        'add its class to the file, as in "architectures": ["BertForSequenceClassification"]'
    )
