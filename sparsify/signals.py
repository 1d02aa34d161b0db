"""Ctrl-C and a polite kill as an exception that nothing else catches, so that every block cleans up."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

# A second signal within so many seconds belongs to the first: keys bounce, and groups are told twice.
_TOGETHER = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system asked the process to stop; `kept` says what of the work can be gone on with."""

    def __init__(self, number: int) -> None:
        self.number, self.kept = number, ""
        super().__init__(number)

    def __str__(self) -> str:
        """One sentence."""
        word = "terminated" if self.number == signal.SIGTERM else "interrupted"
        return f"{word}: {self.kept or 'nothing is left half written'}"

    @property
    def code(self) -> int:
        """The exit code of a process that ends so: 130 after Ctrl-C, 143 after a polite kill."""
        return 128 + self.number


# What was heard inside the present `listening`: only the main thread sets it.
_heard: list[Interrupted] = []


def stop_of(error: BaseException) -> Interrupted | None:
    """The interruption that an error is, or that came before it: compiled code makes other errors of it."""
    if isinstance(error, Interrupted):
        return error
    return _heard[0] if _heard else None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Raise `Interrupted` for the first signal inside the block; a later one ends the process at once.

    An error after a signal is the interruption, too, whatever was made of it on the way.
    A signal that whoever started us has switched off stays off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            _heard.append(Interrupted(number))
            raise _heard[0]
        if time.monotonic() - first[0] > _TOGETHER:
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, hear)
    try:
        yield
    except Exception as error:
        stop = stop_of(error)
        if stop is None:
            raise
        raise stop from error
    finally:
        _heard.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
