"""All kinds by name, in the order they are told to people."""

from collections.abc import Sequence
from typing import Annotated

from sparsify.errors import OptionError
from sparsify.select.kinds.blocks import Blocks
from sparsify.select.kinds.convolutions import Convolutions
from sparsify.select.kinds.coupled import Coupled
from sparsify.select.kinds.experts import Experts
from sparsify.select.kinds.hidden import Hidden
from sparsify.select.kinds.kind import Kind
from sparsify.select.kinds.weights import Weights
from sparsify.text.options import OneOf

ALL: tuple[Kind, ...] = (
    Weights(),
    Convolutions(),
    Coupled("channels"),
    Coupled("heads"),
    Experts(),
    Blocks("layers"),
    Blocks("blocks"),
    Hidden(),
)
KINDS = {kind.name: kind for kind in ALL}
# The type of an option that names a kind.
Name = Annotated[str, OneOf(tuple(KINDS))]


def kinds_of(names: Sequence[str]) -> list[Kind]:
    """The kinds of some names; OptionError when one is named twice."""
    if len(set(names)) < len(names):
        raise OptionError(f"of={','.join(names)} names one kind twice")
    return [KINDS[name] for name in names]


def families(names: Sequence[str]) -> list[list[Kind]]:
    """Kinds that are chosen together, in the order of their names, late ones last."""
    found: dict[str, list[Kind]] = {}
    for kind in kinds_of(names):
        found.setdefault(kind.family, []).append(kind)
    return sorted(found.values(), key=lambda kinds: kinds[0].late)
