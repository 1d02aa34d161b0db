"""The task harness without its bars, prints and advice."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from sparsify.exclusive import EXCLUSIVE

Aloud = Callable[[], AbstractContextManager[None]]
# The harness forks processes to resample, and this one has torch's threads in it.
_NO_FORKS = "DISABLE_MULTIPROC"


@contextlib.contextmanager
def silent() -> Iterator[Aloud]:
    """Keep the harness's bars and advice off the terminal; what it gives lifts that for a while."""
    out, err, logger = sys.stdout, sys.stderr, logging.getLogger("lm_eval")

    @contextlib.contextmanager
    def aloud() -> Iterator[None]:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield

    with EXCLUSIVE, contextlib.ExitStack() as stack:
        level, forks = logger.level, os.environ.get(_NO_FORKS)
        stack.callback(logger.setLevel, level)
        stack.callback(_set, _NO_FORKS, forks)
        logger.setLevel(logging.ERROR)
        _set(_NO_FORKS, "1")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield aloud


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
