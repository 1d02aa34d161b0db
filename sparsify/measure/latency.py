"""Latency of ONNX files on the processor: every variant in one process, taken in turns.

A round runs each variant once; the next round begins with another one, so that a drift of the
clock or a busy neighbour hits all of them alike. The ratio to the baseline is taken within a round
and its median over rounds is reported, with the 10th and 90th percentile as its spread.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsify.data.watch import Watch, unwatched, watched
from sparsify.errors import OptionError, nearest
from sparsify.measure.inputs import Shape, model_inputs
from sparsify.measure.machine import machine
from sparsify.runtime.session import onnxruntime_session

Session = Any


@dataclass(frozen=True)
class Timing:
    """One variant at one shape.

    Times are milliseconds of one run: median, 10th and 90th percentile over rounds. `ratio` is
    baseline time / variant time, above 1 when the variant is faster; `ratio_low` and `ratio_high`
    are its 10th and 90th percentile. `tokens` is the length of a sequence, `past` of the cache.
    """

    name: str
    tokens: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    batch: int = 1
    past: int = 0


def compare(
    paths: Mapping[str, Path],
    baseline: str,
    shapes: Sequence[Shape],
    *,
    vocabulary: int,
    threads: int = 1,
    rounds: int = 30,
    warmup: int = 5,
    seed: int = 0,
    libraries: Sequence[Path] = (),
    verify: bool = True,
    watch: Watch = unwatched,
) -> list[Timing]:
    """Timings of every file at every shape, in the order of `shapes`, then of `paths`.

    All files get the same inputs at a shape: token ids below `vocabulary` drawn from `seed`.
    `libraries` are custom-op libraries to load; `verify` as of `onnxruntime_session`; `watch` hears of
    every round of all shapes. Raises OptionError for a baseline that is not among the names or a count
    below 1, DataError for a file ONNX Runtime cannot open or feed.
    """
    _check(paths, baseline, threads=threads, rounds=rounds, shapes=len(shapes))
    sessions = {
        name: open_session(path, threads=threads, libraries=libraries, verify=verify)
        for name, path in paths.items()
    }
    timings, each = [], warmup + rounds
    for number, shape in enumerate(shapes):
        feeds = {
            name: model_inputs(session.get_inputs(), shape, vocabulary, seed, str(paths[name]))
            for name, session in sessions.items()
        }
        before, total = number * each, len(shapes) * each

        def told(done: int, _: int, before: int = before, total: int = total) -> None:
            watch(before + done, total)

        times = _rounds(sessions, feeds, rounds=rounds, warmup=warmup, watch=told)
        timings += [_timing(name, shape, times[name], times[baseline]) for name in paths]
    return timings


def to_json(timings: Sequence[Timing]) -> dict[str, Any]:
    """What `bench.json` holds: the `machine` it was measured on and the `timings`, a row each."""
    return {"machine": machine(), "timings": [asdict(timing) for timing in timings]}


def shape_words(row: Mapping[str, Any]) -> str:
    """What a timing was fed, batch by length: `1 x 128 tokens`, or `1 x 1 tokens after 500`."""
    past = f" after {row['past']}" if row.get("past") else ""
    return f"{row.get('batch', 1)} \u00d7 {row['tokens']} tokens{past}"


def open_session(
    path: Path, *, threads: int = 1, libraries: Sequence[Path] = (), verify: bool = True
) -> Session:
    """An ONNX Runtime session on the processor, with `threads` within an op, made for comparisons.

    Threads of a session stop spinning when its run ends, so that they cannot slow down another's.
    Raises DataError when the file is missing or no model.
    """
    settings = {"session.force_spinning_stop": "1"}
    return onnxruntime_session(
        path, threads=threads, libraries=libraries, settings=settings, verify=verify
    )


def ratios(times: NDArray[np.float64], baseline: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of baseline / variant, paired by round; both `[rounds]`."""
    paired = baseline / times
    low, median, high = np.percentile(paired, [10, 50, 90])
    return float(median), float(low), float(high)


def turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: the names, rotated by one place a round."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def _rounds(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, dict[str, NDArray[Any]]],
    *,
    rounds: int,
    warmup: int,
    watch: Watch,
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds `[rounds]` of every session, the warm-up rounds left out."""
    names = list(sessions)
    times = {name: np.zeros(warmup + rounds) for name in names}
    collecting = gc.isenabled()
    gc.disable()  # a collection within a run would be counted as the model's time
    try:
        for (number,) in watched(range(warmup + rounds), watch, total=warmup + rounds):
            for name in turn(names, number):
                start = time.perf_counter_ns()
                outputs = sessions[name].run(None, feeds[name])
                times[name][number] = (time.perf_counter_ns() - start) / 1e6
                del outputs
    finally:
        if collecting:
            gc.enable()
    return {name: values[warmup:] for name, values in times.items()}


def _timing(
    name: str, shape: Shape, times: NDArray[np.float64], baseline: NDArray[np.float64]
) -> Timing:
    low, median, high = (float(value) for value in np.percentile(times, [10, 50, 90]))
    ratio, ratio_low, ratio_high = ratios(times, baseline)
    return Timing(
        name=name,
        tokens=shape.tokens,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        batch=shape.batch,
        past=shape.past,
    )


def _check(paths: Mapping[str, Path], baseline: str, **counts: int) -> None:
    if baseline not in paths:
        raise OptionError(f"no variant is called '{baseline}'{nearest(baseline, list(paths))}")
    for word, number in counts.items():
        if number < 1:
            raise OptionError(f"{number} {word} cannot be measured; use 1 or more")
