"""`python -m tests.fuzz MUTANTS --seed-from N`: mutants of saved programs, each loaded and run.

A process of its own loads them, so that a crash or a hang inside a library is counted and the next seed goes
on. Prints a line of figures and exits with 1 when code ran, or a mutant ended in anything but a sentence.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.bases import every
from tests.fuzz.examine import SECONDS, figures, scratch_root
from tests.fuzz.mutate import Mutator

_STEP = 500  # mutants between two lines of progress, and of one child
_GRACE = 120  # seconds to import and begin
_SILENCE = 12 * SECONDS  # of the clock, on a machine that others use as well


def main():
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("mutants", type=int)
    parser.add_argument("--seed-from", type=int, default=0)
    parser.add_argument("--bases", type=Path, help="folders of programs that an earlier run made")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seeds = range(options.seed_from, options.seed_from + options.mutants)
    if options.child is not None:
        return _child(seeds, options.bases, options.child)
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        bases = options.bases or Path(folder) / "bases"
        if not bases.is_dir():
            bases.mkdir(parents=True)
            every(bases)
        return _parent(seeds, bases, Path(folder))


def _child(seeds, bases, scratch):
    """Mutants of some seeds; each seed is told before it begins, figures every so many."""

    def say(**what):
        print(json.dumps(what), flush=True)

    sentinel = scratch / "sentinel"
    mutator = Mutator(sorted(path for path in bases.iterdir()), scratch / "mutant", sentinel)
    for start in range(seeds.start, seeds.stop, _STEP):
        part = range(start, min(seeds.stop, start + _STEP))
        counts, bad, slowest = figures(mutator, part, sentinel, lambda seed: say(seed=seed))
        say(counts=counts, bad=bad, slowest=slowest)
    return 0


def _parent(seeds, bases, scratch):
    counts, bad, slowest, begun = Counter(), [], (0.0, -1), time.perf_counter()
    at = seeds.start
    while at < seeds.stop:
        command = [sys.executable, "-m", "tests.fuzz", str(seeds.stop - at), "--seed-from", str(at)]
        command += ["--bases", str(bases), "--child", str(scratch)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        last, ended = at, _Watch(child)
        for line in child.stdout:
            said = json.loads(line)
            ended.heard()
            if "seed" in said:
                last = said["seed"]
                continue
            counts.update(said["counts"])
            bad += [tuple(item) for item in said["bad"]]
            slowest = max(slowest, tuple(said["slowest"]))
            at = last + 1
            print(_line(counts, bad, slowest, begun), flush=True)
        if child.wait() != 0:
            # What the child had counted since its last figures is told again by the next one.
            outcome = "hang" if ended.killed else "crash"
            counts[outcome] += 1
            bad.append((last, outcome, f"exit {child.returncode}"))
            at = last + 1
    for seed, outcome, word in bad:
        print(f"seed {seed}: {outcome}: {word}")
    print(_line(counts, bad, slowest, begun))
    return int(bool(bad))


class _Watch:
    """Kills a child that is silent for longer than a mutant may take."""

    def __init__(self, child):
        self.child, self.killed, self.last = child, False, time.monotonic() + _GRACE
        threading.Thread(target=self._run, daemon=True).start()

    def heard(self):
        self.last = time.monotonic()

    def _run(self):
        while self.child.poll() is None:
            time.sleep(1)
            if time.monotonic() - self.last > _SILENCE:
                self.killed = True
                self.child.kill()


def _line(counts, bad, slowest, begun):
    total, took = sum(counts.values()), time.perf_counter() - begun
    words = ("refused", "loaded", "unrunnable", "code", "crash", "trace", "hang")
    told = ", ".join(f"{word} {counts[word]}" for word in words)
    return (
        f"{total} mutants: {told}; slowest {slowest[0]:.2f} s (seed {slowest[1]}); "
        f"{total / max(took, 1e-9):.0f} a second"
    )


if __name__ == "__main__":
    sys.exit(main())
