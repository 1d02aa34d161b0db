"""What a recipe is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsify.text.options import missing_option, unknown_option


@dataclass(frozen=True)
class Recipe:
    """A pipeline with a name and one sentence on what comes out.

    `options` have to be given with the name, as in `sheared{layers=4 ...}`: their values in the text are an
    example.
    """

    name: str
    about: str
    text: str
    options: tuple[str, ...] = ()

    def filled(self, given: Mapping[str, str]) -> "Recipe":
        """The recipe with these values of its options; OptionError for one too many or too few."""
        text = self.text
        for key in given:
            if key not in self.options:
                raise unknown_option(self.name, key, self.options)
        for key in self.options:
            if key not in given:
                raise missing_option(self.name, key)
            text = re.sub(rf"\b{key}=\w+", f"{key}={given[key]}", text)
        return replace(self, text=text, options=())
