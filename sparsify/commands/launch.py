"""A command that torchrun or `accelerate launch` started several times: one process speaks, all end alike."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sparsify.errors import OptionError
from sparsify.signals import stop_of

# What launchers tell the number of processes by.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_SHARED = ("run", "stream")  # verbs that several processes do together
_LONGEST = timedelta(minutes=30)  # that a rank waits for the others in one exchange
_GRACE = 5.0  # seconds in which the others are to hear that a run has failed
_CODE, _HEARD = "sparsify/code", "sparsify/heard"
# What torch's backends say when the other end of a connection is gone.
_GONE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "connection was ")


def several() -> bool:
    """Whether a launcher started other processes of this command too."""
    return any(os.environ.get(name, "1") not in ("", "0", "1") for name in _SIZES)


def check_verb(verb: str | None) -> None:
    """Refuse to do in several processes what one does alone; OptionError."""
    if several() and verb is not None and verb not in _SHARED:
        raise OptionError(
            f"'{verb}' is done by one process; start it without a launcher of several"
        )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that a launcher started, inside the block; nothing else where it is alone.

    Only rank 0 prints. The first rank that fails says why, whichever it is; all others end without a word and
    with its exit code.
    """
    if not several():
        yield
        return
    voice = _Voice()
    store = _connect(voice)
    from sparsify.ranks import LostRank

    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            _leave()
            raise
        # What a launcher sends to those that are left comes after the failure, and is no other.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        code = _code_of(error)
        first = _first_to_fail(store, code)
        voice.speaks(first is None)
        if first is not None:
            raise SystemExit(first) from error
        _end_others(store)
        if _lost(error):
            raise LostRank from error
        raise
    _leave()


def _connect(voice: "_Voice") -> Any:
    """Join the process group; the store in which ranks leave word."""
    import torch
    from accelerate.utils import get_cpu_distributed_information
    from torch import distributed

    place = get_cpu_distributed_information()
    voice.speaks(place.rank == 0)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, place.local_world_size))))
    for name, value in (("RANK", place.rank), ("WORLD_SIZE", place.world_size)):
        os.environ[name] = str(value)
    os.environ["LOCAL_RANK"] = str(place.local_rank)
    on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    distributed.init_process_group(backend, timeout=_LONGEST)
    return distributed.distributed_c10d._get_default_store()


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _code_of(error: BaseException) -> int:
    """The exit code of a process that an error ends."""
    stop = stop_of(error)
    if stop is not None:
        return stop.code
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _first_to_fail(store: Any, code: int) -> int | None:
    """None if no rank failed before this one; else the exit code of the first that did."""
    from sparsify.ranks import FAILED

    try:
        if store.add(FAILED, 1) == 1:
            store.set(_CODE, str(code))
            return None
        store.add(_HEARD, 1)
        store.wait([_CODE], timedelta(seconds=_GRACE))
        return int(store.get(_CODE))
    except RuntimeError:  # rank 0 kept the store and is gone, and was not asked to be: nobody spoke
        return None


def _end_others(store: Any) -> None:
    """Cut the connections, on which others wait; keep the store, if it is here, until they have heard."""
    from torch import distributed

    others = distributed.get_world_size() - 1
    hosts = distributed.get_rank() == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
    _leave()
    end = time.monotonic() + _GRACE
    with contextlib.suppress(RuntimeError):
        while hosts and store.add(_HEARD, 0) < others and time.monotonic() < end:
            time.sleep(0.05)


def _lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    from torch import distributed

    said = str(error).lower()
    cut = isinstance(error, RuntimeError) and any(word in said for word in _GONE)
    return cut or isinstance(error, distributed.DistError)


class _Voice:
    """What this process prints, itself and the libraries in it: where it goes, or nowhere."""

    def __init__(self) -> None:
        self._out, self._errors = os.dup(1), os.dup(2)
        self._nowhere = os.open(os.devnull, os.O_WRONLY)

    def speaks(self, yes: bool) -> None:
        """Let it print or not, from now on."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(self._out if yes else self._nowhere, 1)
        os.dup2(self._errors if yes else self._nowhere, 2)
