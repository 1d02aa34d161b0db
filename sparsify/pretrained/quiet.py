"""The model library without its bars and advice."""

import contextlib
from collections.abc import Iterator
from typing import Any

import transformers

from sparsify.exclusive import EXCLUSIVE


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the model library's bars and advice off the terminal, and leave its settings as they were."""
    logs: Any = transformers.utils.logging
    with EXCLUSIVE:
        level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
        logs.set_verbosity_error()
        logs.disable_progress_bar()
        try:
            yield
        finally:
            logs.set_verbosity(level)
            if bars:
                logs.enable_progress_bar()
