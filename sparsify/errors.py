"""Errors that a user can act on: each is one sentence that says where, what was found, and what to do."""

import difflib
import re
from collections.abc import Iterable

# How libraries say that they were given no memory.
_MEMORY = re.compile(
    r"allocate memory|failed to allocate|out of memory|bad_?\s?alloc|unable to mmap", re.I
)


class SparsifyError(Exception):
    """Something the user can mend; the command line prints it as one sentence and exits with 1."""


class OptionError(SparsifyError):
    """An option, pattern or ratio that cannot be meant."""


class PipelineError(SparsifyError):
    """A pipeline that cannot be read, or whose passes do not fit each other."""


class TraceError(SparsifyError):
    """A model that could not be turned into a program."""


class VerifyError(SparsifyError):
    """A program that is not well formed; the message shows the lines around the broken one."""


class LawError(SparsifyError):
    """A pass that moved what its kind must not move."""


class DataError(SparsifyError):
    """Text, a file or a model folder that is missing, empty, damaged or foreign."""


class ExportError(SparsifyError):
    """A program that a format cannot hold, or an export that did not read back the same."""


class KernelError(SparsifyError):
    """The compiled kernels are missing, foreign, or refuse what they were given."""


def reason_of(error: BaseException) -> str:
    """The first line of what another library says, or the name of its error when it says nothing.

    A line that ends with a colon only leads to the next ones: it takes the first that does not.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: last + 1])


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came of, is a lack of memory."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError) or _MEMORY.search(str(found)):
            return True
        found = found.__cause__ or found.__context__
    return False


def sentence_of(error: Exception) -> str | None:
    """What the command line tells of an error; None for one that is our own fault."""
    if lacks_memory(error):
        return "there is not enough memory; use a smaller model, batch or length, or 'stream'"
    if isinstance(error, SparsifyError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}"
    return None


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known spelling, or all that there are, or the nearest few."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) > 12:
        few = difflib.get_close_matches(word, names, n=3, cutoff=0.0)
        return f"; of {len(names)} the nearest are {', '.join(map(repr, few))}"
    return f"; there are: {', '.join(names)}" if names else "; there are none"


def shortened(text: str, longest: int = 300) -> str:
    """A text for an error sentence, its middle left out when it is very long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
