"""Which numbers of heads a config can say, asked of the model class before anything is pruned."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from exporters.beside.config_search import empty_model, last_reason
from sparsify.errors import ExportError
from sparsify.ir.program import Program
from sparsify.pretrained.load import config_of
from sparsify.pretrained.quiet import quiet
from sparsify.select.target_shape import Heads


def check_head_counts(program: Program, cls: type[PreTrainedModel], heads: Heads) -> None:
    """Refuse numbers of heads that no config of a class can say, with those that it can; ExportError.

    A class whose config has other words for heads is left to the search after the run.
    """
    if heads.queries_left == heads.queries:
        return
    config = config_of(cls, program.source.config)
    if _said(config) != (heads.queries, heads.groups):
        return
    with quiet():
        why = _refusal(program, cls, heads.queries_left, heads.groups_left)
        if not why:
            return
        fits = [pair for pair in heads.choices() if not _refusal(program, cls, *pair)]
    smaller = [f"{q}/{kv}" for q, kv in fits if q < heads.queries]
    way = f"it takes {', '.join(smaller)}" if smaller else "it takes no fewer"
    raise ExportError(
        f"huggingface cannot say {heads.queries_left}/{heads.groups_left} of "
        f"{heads.queries}/{heads.groups} query heads and KV groups in a config of {cls.__name__}: {why}; "
        f"{way}, and onnx and safetensors any"
    )


def _said(config: PreTrainedConfig) -> tuple[int | None, int | None]:
    queries = getattr(config, "num_attention_heads", None)
    return queries, getattr(config, "num_key_value_heads", None) or queries


def _refusal(program: Program, cls: type[PreTrainedModel], queries: int, groups: int) -> str:
    """Why a config with these heads is refused; empty when it is not, or nothing can be said."""
    source = config_of(cls, program.source.config)
    names = source.attribute_map
    values: dict[str, Any] = dict(program.source.config)
    size = getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads
    for name, value in (("num_attention_heads", queries), ("num_key_value_heads", groups)):
        key = names.get(name, name)
        if key in values:
            values[key] = value
    values["head_dim"] = size
    try:
        made = {
            name: tuple(value.shape)
            for name, value in empty_model(cls, values).state_dict().items()
        }
        doubled = empty_model(cls, {**values, "head_dim": 2 * size}).state_dict()
    except Exception as error:
        return last_reason(error)
    if queries == source.num_attention_heads:
        return ""
    if all(made[name] == tuple(value.shape) for name, value in doubled.items()):
        return "it has no head size of its own, so that fewer heads would be larger ones"
    return ""
