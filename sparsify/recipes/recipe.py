"""What a recipe is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A pipeline with a name and one sentence on what comes out."""

    name: str
    about: str
    text: str
