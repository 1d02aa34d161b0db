"""What becomes of a mutant: refused in a sentence, or loaded, run, and nothing else."""

import contextlib
import os
import signal
import sys
import time
from collections import Counter

from sparsify import native
from sparsify.commands.artifacts import guarded
from sparsify.errors import SparsifyError
from sparsify.ir.storage.folder import load

SECONDS = 5  # of this process's time, whatever else the machine does
# What code that came out of a file would do; torch itself does none of it while it builds and runs a graph.
_FOREIGN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.rmdir",
    "os.chmod", "os.putenv", "subprocess.Popen", "socket.", "shutil.", "ctypes.dlopen", "pty.spawn",
    "urllib.Request", "webbrowser.open", "pickle.find_class",
)  # fmt: skip
_NAMES = {
    "__import__",
    "eval",
    "exec",
    "open",
    "compile",
    "system",
    "globals",
    "__globals__",
    "__class__",
}
_caught: list[str] = []
_watching = False


class Hang(BaseException):
    """More seconds than a mutant may take."""


def _audit(event, args):
    if not _watching:
        return
    if event.startswith(_FOREIGN):
        _caught.append(f"{event} {args!r:.200}")
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        if "__pycache__" not in str(args[0]):
            _caught.append(f"open {args!r:.200}")
    elif event == "exec" and args[0].co_filename.startswith("<eval_with_key"):
        _caught.extend(f"code names {name}" for name in _within(args[0]) & _NAMES)


def _within(code):
    inner = [part for part in code.co_consts if hasattr(part, "co_names")]
    return set(code.co_names).union(*map(_within, inner))


@contextlib.contextmanager
def _watched():
    """Every foreign act is caught, and a run of more than `SECONDS` ends."""
    global _watching

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _caught.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


native.isa()  # opened once, before anyone watches
sys.addaudithook(_audit)


def examine(folder, sentinel):
    """The outcome of loading and running a mutant, and a word about it."""
    outcome, word = "trace", ""
    try:
        with _watched():
            program = load(folder)
            outcome = "loaded"
            guarded(folder, program.run)(program.sample)
    except SparsifyError as error:
        outcome, word = "unrunnable" if outcome == "loaded" else "refused", str(error)
        first = word.splitlines()[0] if word else ""
        if not 0 < len(first) < 1500 or "Traceback" in word:
            outcome = "trace"
    except Hang:
        outcome = "hang"
    except BaseException as error:  # whatever it is, it should have been a sentence
        outcome, word = "trace", f"{type(error).__name__}: {error}"
    if _caught or sentinel.exists():
        outcome, word = "code", "; ".join(_caught) or "the sentinel was written"
        sentinel.unlink(missing_ok=True)
    return outcome, word


def figures(mutator, seeds, sentinel, tell=None):
    """How many mutants came to which end, the worst ones with their seeds, and the slowest in seconds."""
    counts, bad, slowest = Counter(), [], (0.0, -1)
    for seed in seeds:
        if tell is not None:
            tell(seed)
        folder = mutator.write(seed)
        started = time.perf_counter()
        outcome, word = examine(folder, sentinel)
        slowest = max(slowest, (time.perf_counter() - started, seed))
        counts[outcome] += 1
        if outcome in ("trace", "hang", "code"):
            bad.append((seed, outcome, word[:300]))
    return counts, bad, slowest


def scratch_root():
    """Where mutants are written: in memory where there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
