"""The options of a verb on the data that it reads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from sparsify.commands.options import Length, Text, gathered


@dataclass(frozen=True)
class Reading:
    """The data as it was named, and how it is cut; `holdout` None is the usual share of domains."""

    data: str | None
    length: int
    kind: str
    holdout: float | None


_OPTIONS = {
    "data": (Text, None),
    "length": (Length, 128),
    "kind": (
        Annotated[
            str,
            typer.Option(help="'text' in blocks, 'sentences' by line, or 'chat' for dialogues."),
        ],
        "text",
    ),
    "holdout": (
        Annotated[
            float | None,
            typer.Option(help="The share of each domain that is only measured, 0.05 unless given."),
        ],
        None,
    ),
}


def reads_data(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options on data, in place of its one argument `reading`."""
    return gathered(command, "reading", _OPTIONS, Reading)
