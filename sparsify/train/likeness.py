"""What makes a wrapped program look like the model it came from: class name, signature, kind of loss."""

import inspect
import re
from functools import cache
from typing import Any

from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING

from sparsify.ir.program import Source
from sparsify.pretrained.load import class_named

LABELS, SPANS = ("labels",), ("start_positions", "end_positions")


def arguments(source: Source, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The names that `forward` takes: the inputs, then the labels, positions where spans are found."""
    return (*inputs, *(SPANS if "start_logits" in source.outputs else LABELS))


@cache
def subclass(kind: type[nn.Module], name: str, names: tuple[str, ...]) -> type[nn.Module]:
    """A class of that name whose `forward` is that of `kind`, with the names in its signature."""

    def forward(self: nn.Module, *values: Any, **batch: Any) -> Any:
        return kind.forward(self, *values, **batch)

    place = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(each, place, default=None) for each in names]
    signature = inspect.Signature([inspect.Parameter("self", place), *named])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__doc__ = kind.forward.__doc__
    said = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_plain": kind}
    return type(name, (kind,), {"forward": forward, **said})


def takes_loss_kwargs(model_class: str) -> bool:
    """Whether Trainer should say how many labels a whole step has, as a model class has it."""
    cls = class_named(model_class)
    if cls is None:
        return True
    said: bool | None = getattr(cls, "accepts_loss_kwargs", None)
    kinds = {p.kind for p in inspect.signature(cls.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds if said is None else said


def loss_type_of(model_class: str) -> str | None:
    """The kind of loss of a model class in the model library's words."""
    if model_class in LOSS_MAPPING:
        return model_class
    found = re.search("|".join(LOSS_MAPPING), model_class)
    return found[0] if found else None
