"""Spelling help for error sentences."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known spelling, or all that there are."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) > 12:
        return f"; there are {len(names)}, the first is '{names[0]}'"
    return f"; there are: {', '.join(names)}" if names else "; there are none"


def shortened(text: str, longest: int = 300) -> str:
    """A text for an error sentence, its middle left out when it is very long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
