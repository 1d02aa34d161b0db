"""Masks that are learnt to a target shape (Sheared LLaMA): their units in a program, and their end."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.features.soft_fold import takers
from sparsify.ir.program import Program
from sparsify.ir.run.soft_masks import soft_masks
from sparsify.ir.views.linear import linears
from sparsify.ir.views.targets import is_head
from sparsify.select.kinds.catalogue import KINDS
from sparsify.select.kinds.kind import Units
from sparsify.select.target_shape import Learned
from sparsify.tensors.hard_concrete import REACH
from sparsify.train.learned_masks import Family, LearnedMasks, Rows

Sizes = Mapping[str, int]
# Features under which masks are not learnt: soft values would not reach all that stands beside a weight.
NOT_UNDER = (
    "mask.weights",
    "mask.blocks",
    "mask.experts",
    "lora",
    "slorb",
    "adapters",
    "experts",
    "row-scales",
    "bias",
    "probe",
    "quantizers",
    "packed",
)


@dataclass(frozen=True)
class Learning:
    """How masks are learnt: `sizes` stay of each kind, at a peak rate `lr`, targets rising over `rise`."""

    sizes: Sizes
    lr: float
    rise: float
    seed: int


def check_learned(program: Program, options: Learned) -> None:
    """Raise OptionError for options that make no sense, and for a target as `check_sizes` does."""
    options.check()
    check_sizes(program, options.sizes())


def learning_of(
    program: Program, options: object, seed: int, notes: list[str]
) -> AbstractContextManager[LearnedMasks | None]:
    """`learning` for the options of a training that learns masks; nothing for those of another."""
    if not isinstance(options, Learned):
        return contextlib.nullcontext()
    return learning(program, Learning(options.sizes(), options.lr, options.ramp, seed), notes)


def check_sizes(program: Program, sizes: Sizes) -> None:
    """Raise OptionError for a target shape that the program has not, or that masks cannot be taught."""
    if not sizes:
        raise OptionError("learned masks need a target; name layers, heads, channels or hidden")
    found = {kind: _rows(program, kind) for kind in sizes}
    for kind, size in sizes.items():
        if not found[kind]:
            raise OptionError(
                f"the program has no prunable {kind}; `sparsify-fx show MODEL --axes` says why"
            )
        for units in found[kind]:
            _check_size(kind, size, units)
    if all(u.size * u.width == sizes[kind] for kind, every in found.items() for u in every):
        raise OptionError("the program has the target shape already, so that nothing would go")


def _check_size(kind: str, size: int, units: Units) -> None:
    whole, where = units.size * units.width, f"{kind}={size}"
    if not 0 < size <= whole:
        raise OptionError(f"{where} cannot be kept of the {whole} {kind} at @{units.key}")
    if size % units.width:
        raise OptionError(
            f"{where} at @{units.key} is no number of whole KV groups of {units.width} query heads; "
            f"take a multiple of {units.width}"
        )
    if 1 - size / whole > REACH:
        least = math.ceil((1 - REACH) * units.size) * units.width
        raise OptionError(
            f"{where} of {whole} at @{units.key} is a sparsity of {1 - size / whole:.3f}, and learned "
            f"masks reach {REACH:.3f}; keep at least {least}"
        )


@contextlib.contextmanager
def learning(program: Program, how: Learning, notes: list[str]) -> Iterator[LearnedMasks]:
    """Masks that learn inside the block; then they are boolean, and weights hold what was soft.

    Where a value cannot be taken in exactly it is rounded to 1, and `notes` say so. Raises OptionError as
    `check_sizes` does, and for axes without a mask.
    """
    found = _masked(program, how.sizes)
    families = {
        kind: Family(
            tuple(units.size for units in rows),
            tuple(how.sizes[kind] // units.width for units in rows),
        )
        for kind, rows in found.items()
    }
    paths = [path for rows in found.values() for units in rows for path in units.index]
    with soft_masks(program, paths) as put:

        def place(values: Rows) -> None:
            for masks in _spread(found, values).values():
                put(masks)

        learned = LearnedMasks(families, place, lr=how.lr, rise=how.rise, seed=how.seed)
        yield learned
    settle(program, _spread(found, learned.settled()), notes)


def _masked(program: Program, sizes: Sizes) -> dict[str, list[Units]]:
    """The units of each kind that loses some, all of them masked."""
    check_sizes(program, sizes)
    found = {}
    for kind, size in sizes.items():
        rows = _rows(program, kind)
        bare = [units for units in rows if not _covered(kind, units)]
        if bare:
            raise OptionError(
                f"the {kind} at @{bare[0].key} have no mask, and a target shape is one of all; "
                "let insert-masks have all targets"
            )
        if any(units.size * units.width > size for units in rows):
            found[kind] = rows
    return found


def _rows(program: Program, kind: str) -> list[Units]:
    """The units of a kind but those that a head takes in and nobody has masked, as a classifier's pooler."""
    heads = {view.weight for view in linears(program) if is_head(program, view)}
    return [row for row in KINDS[kind].units(program) if row.index or row.key not in heads]


def _covered(kind: str, units: Units) -> bool:
    return len(units.index) == units.size if kind == "layers" else bool(units.index)


def _spread(found: Mapping[str, list[Units]], values: Rows) -> dict[str, dict[str, Tensor]]:
    """The values of units at every mask entry, by kind and by the path of the mask."""
    return {
        kind: {
            path: row[index.to(row.device)]
            for units, row in zip(rows, values[kind], strict=True)
            for path, index in units.index.items()
        }
        for kind, rows in found.items()
    }


@torch.no_grad()
def settle(program: Program, values: Mapping[str, Mapping[str, Tensor]], notes: list[str]) -> None:
    """Keep what is above zero in boolean masks, and multiply weights by the values that stay.

    `values` are those of every mask, by kind and path.
    """
    for kind, masks in values.items():
        for path, value in masks.items():
            kept = value > 0
            program.tensor(path).copy_(kept)
            into = takers(program, kind, path)
            if into is None:
                if bool(kept.any()):
                    notes.append(
                        f"@{path} was rounded to 0 and 1: no weight can take its values in"
                    )
                continue
            for taker in into:
                taker.scale(program, torch.where(kept, value, 1.0))
