"""One thread at a time, where settings of the whole process are changed for a while."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Tracing, typing, loading and exporting patch models, warnings, loggers and modes of torch that all
# threads share; a thread that holds it may take it again.
EXCLUSIVE = threading.RLock()


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """A function that waits until no other one of its kind runs in another thread."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with EXCLUSIVE:
            return function(*args, **kwargs)

    return wrapper
