"""Search for the Hugging Face config whose model has exactly the tensor shapes of a program.

Nothing is known of architectures: a config entry is a candidate when scaling it as a changed
dimension was scaled (`heads * new / old`), or giving an unset entry the new size, moves a tensor
that does not fit yet and leaves those that fit; so is a switch that makes room for a tensor without
a place, such as a bias. Combinations of a few such changes are tried on the
meta device.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsify.errors import ExportError
from sparsify.ir.program import Program
from sparsify.pretrained.load import class_named, config_of

Shape = tuple[int, ...]
Change = tuple[tuple[str, ...], int]
_MOST_CHANGES = 5


@dataclass(frozen=True)
class Misfit:
    """A tensor that a config gives another shape than the program; `there` is None for no place."""

    name: str
    here: Shape
    there: Shape | None


def class_of(program: Program) -> type[PreTrainedModel]:
    """The `transformers` class that the program was traced from; ExportError when there is none."""
    found = class_named(program.source.model_class)
    if found is None:
        raise ExportError(
            f"huggingface needs a model class of transformers, but the program was traced from "
            f"{program.source.model_class}; export to onnx or safetensors"
        )
    return found


def empty_model(cls: type[PreTrainedModel], config: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a config dictionary on the meta device: shapes without numbers."""
    made = config_of(cls, config)
    with torch.device("meta"):
        return cls(made)


def last_reason(error: Exception) -> str:
    """The sentence that a config's own check ends with, the kind of error before it left out."""
    last = str(error).strip().rpartition("\n")[2].strip().rstrip(".")
    return last.removeprefix("ValueError: ") or type(error).__name__


def holder(program: Program, name: str) -> str | None:
    """The path under which the program holds a tensor of the model, followed through ties."""
    names = [name, program.aliases.get(name)]
    names += [second for second, first in program.aliases.items() if first == name]
    return next((path for path in names if path is not None and program.has(path)), None)


class Search:
    """The configs that fit a program, and the nearest one when none does."""

    def __init__(self, program: Program, cls: type[PreTrainedModel]) -> None:
        self.cls = cls
        self.source = dict(program.source.config)
        self.nearest: list[Misfit] = []
        # Changes that the class itself will not have, and its words.
        self.refused: dict[str, str] = {}
        self._program = program
        self._unset = {path for path, value in entries(self.source) if value is None}
        self._old = self._shapes(self.source)

    def configs(self) -> Iterator[dict[str, Any]]:
        """Config dictionaries under which every tensor has its place, few changes first."""
        self.nearest = self._misfits(self._old)
        if not self.nearest:
            yield self.source
            return
        fitting = []
        for base in (self.source, self._pinned()):
            for config in self._changed(base) if base is not None else ():
                fitting.append(config)
                yield config
        for config in fitting:
            yield from self._unseen(config)

    def _unseen(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A fitting config with one more entry changed that no shape shows.

        Where the width is heads times their size, a narrower model of as many heads has the same shapes as
        one of fewer heads: the outputs tell.
        """
        for change in self._changes(config):
            changed = with_changes(config, [change])
            if self._fits(changed):
                yield changed

    def _changed(self, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every fitting combination of helpful changes to a config with the old shapes."""
        wrong = {misfit.name for misfit in self._misfits(self._old)}
        helpful = [
            (change, moved)
            for change in self._changes(base)
            if (moved := self._moves(base, change, wrong))
        ]
        for size in range(1, _MOST_CHANGES + 1):
            for chosen in itertools.combinations(helpful, size):
                paths = {change[0] for change, _ in chosen}
                reached: set[str] = set().union(*(moved for _, moved in chosen))
                if len(paths) < size or not wrong <= reached:
                    continue
                config = with_changes(base, [change for change, _ in chosen])
                if self._fits(config):
                    yield config

    def _changes(self, base: dict[str, Any]) -> list[Change]:
        """Single entries that may stand for a changed dimension, with their new value."""
        pairs = self._changed_sizes()
        homeless = any(misfit.there is None for misfit in self._misfits(self._old))
        changes: dict[Change, None] = {}
        for path, value in entries(base):
            if isinstance(value, bool):
                if homeless:
                    changes[path, not value] = None
                continue
            for old, new in pairs:
                if value is None:
                    changes[path, new] = None
                elif value > 0 and old % value == 0 and value * new % old == 0:
                    changes[path, value * new // old] = None
        return list(changes)

    def _changed_sizes(self) -> list[tuple[int, int]]:
        pairs: dict[tuple[int, int], None] = {}
        for misfit in self._misfits(self._old):
            if misfit.there is not None and len(misfit.there) == len(misfit.here):
                for old, new in zip(misfit.there, misfit.here, strict=True):
                    if old != new:
                        pairs[old, new] = None
        return list(pairs)

    def _moves(self, base: dict[str, Any], change: Change, wrong: set[str]) -> set[str]:
        """The misfits that a change moves; none when it moves a tensor that fitted before."""
        changed = with_changes(base, [change])
        try:
            shapes = self._shapes(changed)
        except Exception as error:
            if change[0] not in self._unset:  # a guess at those says nothing
                self.refused[f"{'.'.join(change[0])}={change[1]}"] = last_reason(error)
            return set()
        self._remember(shapes)
        moved = {name for name in self._old if shapes.get(name) != self._old[name]}
        # A name that is new under the change is a place for a tensor that had none.
        placed = {name for name in wrong if name in shapes and name not in self._old}
        return moved | placed if moved <= wrong else set()

    def _pinned(self) -> dict[str, Any] | None:
        """The source config with its head size said outright, when the model class reads it.

        Many classes take `hidden_size // num_attention_heads` where a config is silent, which would
        change the head size together with the number of heads.
        """
        config = config_of(self.cls, self.source)
        hidden = getattr(config, "hidden_size", None)
        heads = getattr(config, "num_attention_heads", None)
        said = self.source.get("head_dim")
        if said is not None or not isinstance(hidden, int) or not isinstance(heads, int):
            return None
        pinned = {**self.source, "head_dim": hidden // heads}
        doubled = {**self.source, "head_dim": 2 * (hidden // heads)}
        read = self._try(doubled) != self._old and self._try(pinned) == self._old
        return pinned if read else None

    def _fits(self, config: dict[str, Any]) -> bool:
        shapes = self._try(config)
        return shapes is not None and not self._remember(shapes)

    def _remember(self, shapes: dict[str, Shape]) -> list[Misfit]:
        misfits = self._misfits(shapes)
        if len(misfits) < len(self.nearest):
            self.nearest = misfits
        return misfits

    def _try(self, config: dict[str, Any]) -> dict[str, Shape] | None:
        """Shapes under a config; None when the class refuses it, whatever it says."""
        try:
            return self._shapes(config)
        except Exception:
            return None

    def _shapes(self, config: dict[str, Any]) -> dict[str, Shape]:
        state = empty_model(self.cls, config).state_dict()
        return {name: tuple(value.shape) for name, value in state.items()}

    def _misfits(self, shapes: dict[str, Shape]) -> list[Misfit]:
        """Tensors of other shapes, and parameters the model has no place for.

        What the model has and the program lacks is not read by the function, so any shape will do.
        """
        misfits = []
        placed = set()
        for name, there in shapes.items():
            path = holder(self._program, name)
            if path is None:
                continue
            placed.add(path)
            here = tuple(self._program.tensor(path).shape)
            if here != there:
                misfits.append(Misfit(name, here, there))
        for path, parameter in self._program.module.named_parameters():
            if path not in placed:
                misfits.append(Misfit(path, tuple(parameter.shape), None))
        return misfits


def entries(
    config: Mapping[str, Any], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """Whole numbers, switches and unset entries of a config and of the configs inside it."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            yield from entries(value, (*prefix, key))
        elif value is None or isinstance(value, int):
            yield (*prefix, key), value


def with_changes(config: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    """A config with other values at some entries."""
    changed = copy.deepcopy(config)
    for path, value in changes:
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return changed
