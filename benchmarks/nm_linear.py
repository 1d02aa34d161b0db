"""Packed N:M linear layers against ONNX Runtime's own: speed, share of the machine's limits, accuracy.

All kinds of a group stand in one process and take turns; weights differ from layer to layer and more than
100 MB of them are streamed. With one thread the time is the thread's processor time, with more it is the
clock's. A ratio is the rival's time / ours within a round; its median and 10-90 % over rounds are shown. The
error is relative to float64 with the weights before rounding.

    python benchmarks/nm_linear.py [--shapes 2048x2048,...] [--threads 1,2] [--isa avx2] [--json FILE]

`--isa avx2` limits ONNX Runtime and our kernels to AVX2 on a processor that has more.
"""

import argparse
import gc
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nm_sessions import Kind, Stack
from ort_avx2 import run_again_for_avx2
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from roofline import roofline

from sparsify import native
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line

SHAPES = "2048x2048,5632x2048,2048x5632,4096x4096"
STREAMED = 100e6
Limits = tuple[float, float]  # GB/s and GFLOP/s


def packed(n: int, m: int, values: str = "float32") -> Kind:
    return Kind(f"{values} {n}:{m}", "packed", n, m, values, 0 if values == "float32" else 128)


@dataclass(frozen=True)
class Group:
    """Kinds that are compared with the first one, and the ratios to reach by kind and tokens."""

    kinds: tuple[Kind, ...]
    tokens: tuple[int, ...]
    floors: dict[tuple[str, int], float]


GROUPS = (
    Group(
        (
            Kind("MLAS float32", "dense"),
            packed(2, 4),
            packed(4, 8),
            packed(2, 8),
            packed(1, 4),
        ),
        (1, 4, 128, 512),
        {
            ("float32 2:4", 1): 1.6,
            ("float32 2:4", 4): 1.9,
            ("float32 2:4", 128): 1.55,
            ("float32 2:4", 512): 1.55,
            ("float32 2:8", 1): 3.2,
            ("float32 2:8", 128): 2.6,
        },
    ),
    Group(
        (
            Kind("DynamicQuantizeMatMul int8", "dynamic"),
            packed(2, 4, "int8"),
            packed(4, 8, "int8"),
            packed(2, 8, "int8"),
            Kind("MatMulNBits int8", "blocks", values="int8", group=128),
        ),
        (1, 4, 128),
        {("int8 2:4", 1): 1.4, ("int8 2:4", 128): 1.2},
    ),
    Group(
        (
            Kind("MatMulNBits int4", "blocks", values="int4", group=128),
            packed(2, 4, "int4"),
            packed(4, 8, "int4"),
            packed(2, 8, "int4"),
        ),
        (1, 4, 128),
        {
            ("int4 2:4", 1): 1.7,
            ("int4 2:4", 128): 2.3,
            ("int4 4:8", 1): 1.4,
            ("int4 2:8", 1): 3.0,
        },
    ),
)


@dataclass(frozen=True)
class Row:
    """One kind at one shape; microseconds and bytes of one layer."""

    shape: str
    tokens: int
    threads: int
    kind: str
    against: str
    us: float
    ratio: float
    low: float
    high: float
    floor: float | None
    bytes_per_weight: float
    gb_s: float
    gflop_s: float  # of the multiply-adds that are done, not of those that are left out
    memory_share: float | None
    fma_share: float | None
    error: float


def measure(
    group: Group, shape: str, threads: int, rounds: int, limits: Limits | None
) -> list[Row]:
    """The rows of one group at one shape, `out x in`."""
    out, columns = map(int, shape.split("x"))
    stacks = [Stack(kind, out, columns, STREAMED, threads) for kind in group.kinds]
    rows = []
    for tokens in group.tokens:
        x = np.random.default_rng(3).standard_normal((tokens, columns), dtype=np.float32)
        times = interleaved(stacks, x, threads, rounds)
        rows += [
            row(group, shape, tokens, threads, stack, times[i], times[0], limits)
            for i, stack in enumerate(stacks)
        ]
    del stacks
    gc.collect()
    return rows


def interleaved(stacks: list[Stack], x: np.ndarray, threads: int, rounds: int) -> list[np.ndarray]:
    """Seconds of one layer `[rounds]` for every stack."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    for stack in stacks:
        stack.bind(x)
        stack.run()
    seconds = [np.zeros(rounds) for _ in stacks]
    for number in range(rounds):
        for place in range(len(stacks)):
            i = (number + place) % len(stacks)
            start = clock()
            stacks[i].run()
            seconds[i][number] = (clock() - start) / stacks[i].layers
    return seconds


def row(
    group: Group,
    shape: str,
    tokens: int,
    threads: int,
    stack: Stack,
    times: np.ndarray,
    rival: np.ndarray,
    limits: Limits | None,
) -> Row:
    kind, seconds = stack.kind, float(np.median(times))
    weights = stack.out * stack.columns
    kept = kind.n / kind.m if kind.m else 1.0
    rate, work = stack.layer.nbytes / seconds / 1e9, 2 * tokens * weights * kept / seconds / 1e9
    low, ratio, high = (float(q) for q in np.percentile(rival / times, [10, 50, 90]))
    return Row(
        shape,
        tokens,
        threads,
        kind.name,
        group.kinds[0].name,
        seconds * 1e6,
        ratio,
        low,
        high,
        group.floors.get((kind.name, tokens)),
        stack.layer.nbytes / weights,
        rate,
        work,
        rate / limits[0] if limits else None,
        work / limits[1] if limits else None,
        stack.error(),
    )


def show(rows: list[Row], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in (
        "shape",
        "tokens",
        "threads",
        "kind",
        "us",
        "ratio (10-90 %)",
        "floor",
        "B/weight",
    ):
        table.add_column(column, no_wrap=True)
    for column in ("GB/s", "of memory", "GFLOP/s", "of FMA", "error"):
        table.add_column(column, no_wrap=True, justify="right")
    for r in rows:
        floor = (
            "" if r.floor is None else f"{r.floor:.2f} {'ok' if r.ratio >= r.floor else 'below'}"
        )
        table.add_row(
            r.shape,
            str(r.tokens),
            str(r.threads),
            r.kind,
            f"{r.us:.1f}",
            f"{r.ratio:.2f} ({r.low:.2f}-{r.high:.2f})",
            floor,
            f"{r.bytes_per_weight:.3f}",
            f"{r.gb_s:.1f}",
            "" if r.memory_share is None else f"{r.memory_share:.0%}",
            f"{r.gflop_s:.0f}",
            "" if r.fma_share is None else f"{r.fma_share:.0%}",
            f"{r.error:.1e}",
        )
    console.print(table, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=SHAPES, help="out x in, separated by commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--values", default="float32,int8,int4", help="groups to measure")
    parser.add_argument("--tokens", help="token counts instead of each group's own")
    parser.add_argument("--isa", choices=["avx2"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.isa:
            run_again_for_avx2(Path(scratch))
    threads = [int(word) for word in options.threads.split(",")]
    limits = roofline(threads)
    console = Console(width=200)
    rows: list[Row] = []
    for count in threads:
        for group, values in zip(GROUPS, ("float32", "int8", "int4"), strict=True):
            if values not in options.values.split(","):
                continue
            if options.tokens:
                chosen = tuple(int(word) for word in options.tokens.split(","))
                group = Group(group.kinds, chosen, group.floors)
            for shape in options.shapes.split(","):
                rows += (found := measure(group, shape, count, options.rounds, limits.get(count)))
                show(found, console)
    facts = machine_line(machine()), f"kernels: {native.isa()}"
    console.print(*facts, limits, soft_wrap=True)
    if options.json:
        result = {"machine": machine(), "isa": native.isa(), "limits": limits}
        write_json(options.json, {**result, "rows": [asdict(r) for r in rows]})


if __name__ == "__main__":
    main()
