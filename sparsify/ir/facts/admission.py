"""What token sequences a model takes, known before it runs: ids below its vocabulary, and how many tokens."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from sparsify.disk.files import ABOUT, MOST_TOKENS, read_json
from sparsify.errors import DataError, SparsifyError
from sparsify.ir.features.prefix import tokens_before
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import tables
from sparsify.pretrained.load import class_named, config_of
from sparsify.pretrained.quiet import quiet

# Tables may hold a few rows more than positions: the first ones mean padding.
_SPARE = 2
# The most tokens of a text in a config; behind an encoder of sounds, those of what is written.
_LENGTHS = ("max_position_embeddings", "max_target_positions")


@dataclass(frozen=True)
class Admission:
    """Ids are below `vocabulary`, and a sequence has at most `positions` tokens; None where nothing is known.

    With `fixed` a longer sequence has no positions (they are rows of a table) and a forward would fail.
    Otherwise positions are worked out (rotary ones, distances), and `positions` is what was trained on.
    """

    vocabulary: int | None = None
    positions: int | None = None
    fixed: bool = False

    def check_length(self, length: int, what: str) -> None:
        """Refuse sequences without positions (DataError); a warning for more than were trained on."""
        if self.positions is None or length <= self.positions:
            return
        if self.fixed:
            raise DataError(
                f"{what} of {length} tokens are too long for the model, which has {self.positions} positions"
            )
        logging.getLogger("sparsify").warning(
            f"{what} of {length} tokens are longer than the {self.positions} that the model states; "
            "it runs, as in transformers, but has not learnt such positions"
        )

    def behind(self, tokens: int) -> "Admission":
        """What is left to sequences behind so many tokens."""
        positions = None if self.positions is None else self.positions - tokens
        return replace(self, positions=positions)

    def up_to(self, most: int | None) -> "Admission":
        """What is left where the model's code does something else beyond so many tokens; None is no bound."""
        if most is None or (self.fixed and self.positions is not None and self.positions <= most):
            return self
        return replace(self, positions=most, fixed=True)

    def check_ids(self, largest: int, what: str) -> None:
        """Refuse ids that the model has no row for; DataError."""
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise DataError(
                f"{what} hold the id {largest}, but the model has a vocabulary of {self.vocabulary}; "
                "the tokenizer is another model's"
            )


ANYTHING = Admission()
_LENGTH = "length"  # the dimension of tokens


def admission_of(kind: str, config: Mapping[str, Any]) -> Admission:
    """What a class of the model library with this config takes; anything where the class is unknown."""
    cls = class_named(kind)
    if cls is None:
        return ANYTHING
    made = config_of(cls, config)
    with quiet(), warnings.catch_warnings(action="ignore"), torch.device("meta"):
        return admission_of_model(cls(made))


def admission_of_model(model: nn.Module) -> Admission:
    """What a model of the model library takes, read off its config and the tables that it holds."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return ANYTHING
    text = config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    stated = next((getattr(text, name) for name in _LENGTHS if hasattr(text, name)), None)
    if not isinstance(stated, int) or stated < 1:
        return Admission(vocabulary)
    if getattr(text, "rope_parameters", None):
        return Admission(vocabulary, stated)
    usable = _rows_for_positions(model, stated)
    if usable is None:
        return Admission(vocabulary, stated)
    return Admission(vocabulary, usable, fixed=True)


def admission_of_program(program: Program) -> Admission:
    """What a program takes: by its limits, and the config it was traced with or its own tables of ids."""
    return _stated_by(program).up_to(most_tokens(program))


def most_tokens(program: Program) -> int | None:
    """The tokens beyond which the model's own code does something else than the program; None is no bound."""
    return program.limits[_LENGTH][1] if _LENGTH in program.limits else None


def _stated_by(program: Program) -> Admission:
    if program.source.config:
        stated = admission_of(program.source.model_class, program.source.config)
        return stated.behind(tokens_before(program))
    rows = [
        program.tensor(table.weight).shape[0]
        for table in tables(program)
        if table.quantizer is None and table.ids.op == "placeholder"
    ]
    return Admission(min(rows, default=None))


def admission_in(folder: str | Path) -> Admission:
    """What the model of a folder takes by `config.json` and `sparsify.json`; anything without the first."""
    if not (Path(folder) / "config.json").is_file():
        return ANYTHING
    try:
        config, about = (
            read_json(path) if (path := Path(folder) / name).is_file() else {}
            for name in ("config.json", ABOUT)
        )
        stated = admission_of(next(iter(config.get("architectures") or ("",))), config)
        return stated.up_to(about.get(MOST_TOKENS))
    except (SparsifyError, AttributeError, TypeError, ValueError):
        return ANYTHING


def _rows_for_positions(model: nn.Module, stated: int) -> int | None:
    """The positions that a table has rows for; None when there is no table of that size."""
    sizes = range(stated, stated + _SPARE + 1)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings in sizes:
            # Positions are counted from behind the row of padding.
            behind = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(stated, module.num_embeddings - behind)
    computed = (b for _, b in model.named_buffers() if b.dim() == 2 and b.shape[0] in sizes)
    return stated if next(computed, None) is not None else None
