"""How the model library turns the tensors of a folder into those of a model, and back: experts stacked, say.

experts.0.w1, experts.0.w3, experts.1.w1, ...  <->  experts.gate_up_proj [experts, 2 channels, in]
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
)

from sparsify.errors import DataError


@dataclass(frozen=True)
class Bundle:
    """Tensors of a folder that become tensors of a model together; `keys` are their names in the folder.

    `names` are those that the library's converter knows them by, one for each key. Without a converter it is
    one tensor, which keeps its values.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    target: str
    converter: WeightConverter | None
    model: PreTrainedModel | None = None

    def load(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The tensors of the model by name, from those that `read` gives for the keys."""
        if self.converter is None:
            return {self.target: read(self.keys[0])}
        converter = copy.deepcopy(self.converter)
        for key, name in zip(self.keys, self.names, strict=True):
            target, pattern = converter.rename_source_key(name)
            assert pattern is not None
            _add(converter, target, name, pattern, read(key))
        return self._converted(converter, self.target)

    def store(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `load`; DataError where the library's way back leads to other tensors."""
        if self.converter is None:
            return {self.keys[0]: values[self.target]}
        back = copy.deepcopy(self.converter).reverse_transform()
        assert isinstance(back, WeightConverter)
        first = None
        for name in sorted(values, key=dot_natural_key):
            target, pattern = back.rename_source_key(name)
            assert pattern is not None
            _add(back, target, name, pattern, values[name])
            first = first or target
        assert first is not None
        found = self._converted(back, first)
        if found.keys() != set(self.names):
            raise DataError(
                f"'{self.keys[0]}' cannot be written back as it was read; load the model with "
                "sparsify.load_model and prune it by a pipeline"
            )
        return {key: found[name] for key, name in zip(self.keys, self.names, strict=True)}

    def _converted(self, converter: WeightConverter, target: str) -> dict[str, Tensor]:
        assert self.model is not None
        found: dict[str, Any] = converter.convert(
            target, model=self.model, config=self.model.config
        )
        return {
            name: value[0] if isinstance(value, list) else value for name, value in found.items()
        }


def _add(converter: Any, target: str, name: str, pattern: str, value: Tensor) -> None:
    """Tensors may be given as they are; the library's types know of promises only."""
    converter.add_tensor(target, name, pattern, value)


def bundles(model: PreTrainedModel | None, keys: Iterable[str]) -> list[Bundle]:
    """The tensors of a folder by what they become together; each alone where no model of the library is.

    The model may be one of `shape_of_model`.
    """
    ordered = sorted(keys, key=dot_natural_key)
    transforms = [] if model is None else get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    found: dict[str, tuple[list[str], list[str], WeightConverter | None]] = {}
    for key in ordered:
        name = apply_renamings(key, renamings)
        target, pattern = apply_converters(name, converters)
        converter = None if pattern is None else by_pattern[pattern]
        parts, names, _ = found.setdefault(target, ([], [], converter))
        parts.append(key)
        names.append(name)
        if converter is None and len(parts) > 1:
            raise DataError(f"the tensors '{parts[0]}' and '{key}' are one tensor of the model")
    return [
        Bundle(tuple(parts), tuple(names), target, converter, model)
        for target, (parts, names, converter) in found.items()
    ]
