"""Packed weights against DeepSparse 1.8.0, the last release of an engine for zeros anywhere; run by hand.

A chain of square linear layers, float32, weights of its own in each, more than 100 MB of what is kept; one
thread. DeepSparse and ONNX Runtime stand in processes and environments of their own and take turns; the
time is the thread's processor time, the ratio is DeepSparse's time / ours within a turn. On 2:4 both
have the same weights. Against 80 % zeros anywhere stands our 2:8, which is 75 %: we do a quarter more.

    python benchmarks/deepsparse_row.py [--shapes 2048,4096] [--tokens 1,128] [--rounds 15] [--venv DIR]
                                        [--isa avx2] [--json FILE]

DeepSparse is proprietary and no longer maintained, so nothing in this project depends on it. It is installed
into a virtual environment of its own (`--venv`), which needs Python 3.11 or older, and kept from
reporting its use. `--isa avx2` limits all three to AVX2 on a processor that has more.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from nm_sessions import pruned
from onnx import helper, numpy_helper
from ort_avx2 import run_again_for_avx2
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import native, onnxruntime_session
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line
from sparsify.tensors.packing.packed import Layout, pack

WORKER = Path(__file__).parent / "deepsparse_worker.py"
PACKAGES = ("deepsparse==1.8.0", "numpy<2")
STREAMED = 100e6


@dataclass(frozen=True)
class Case:
    """Weights for DeepSparse, of a pattern (0:0 for dense) or unstructured, and what we put against them."""

    theirs: str
    ours: str
    n: int = 0
    m: int = 0
    zeros: float = 0.0


CASES = (
    Case("dense", "MLAS dense"),
    Case("2:4", "packed 2:4", 2, 4),
    Case("80 % zeros", "packed 2:8", 2, 8, zeros=0.8),
)


@dataclass(frozen=True)
class Row:
    """One case at one size; microseconds of one layer, seconds that DeepSparse takes to compile all."""

    size: int
    tokens: int
    layers: int
    theirs: str
    ours: str
    their_us: float
    our_us: float
    ratio: float
    low: float
    high: float
    compile_s: float
    their_error: float  # relative to float64
    our_error: float


class Worker:
    """DeepSparse in its own process."""

    def __init__(self, python: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([python, WORKER], stdin=pipe, stdout=pipe, text=True)

    def ask(self, **order: Any) -> Any:
        """Send an order and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"DeepSparse ended with status {self.process.wait()}; see above")
        return json.loads(line)


def environment(folder: Path) -> Path:
    """The Python of a virtual environment that has DeepSparse."""
    python = folder / "bin" / "python"
    if not python.is_file():
        if sys.version_info >= (3, 12):
            raise SystemExit(
                "there are no files of DeepSparse 1.8.0 for Python 3.12; run with 3.11"
            )
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def weights(case: Case, size: int) -> tuple[np.ndarray, np.ndarray]:
    """W `[out, in]` of the first layer, for DeepSparse and for us; a product keeps its input's size."""
    ours = theirs = pruned(size, size, case.n, case.m, seed=0)
    if case.zeros:
        theirs = pruned(size, size, 0, 0, seed=0)
        theirs[np.abs(theirs) < np.quantile(np.abs(theirs), case.zeros)] = 0.0
    theirs, ours = (w * math.sqrt(size) / np.linalg.norm(w) for w in (theirs, ours))
    return theirs, ours


def dense_chain(weight: np.ndarray, layers: int, tokens: int, path: Path) -> Path:
    """MatMul nodes; the rows of W move on by 8 from layer to layer."""
    turned = [np.ascontiguousarray(np.roll(weight, 8 * i, axis=0).T) for i in range(layers)]
    return chain(turned, "MatMul", {}, len(weight), tokens, path)


def packed_chain(weight: np.ndarray, case: Case, layers: int, tokens: int, path: Path) -> Path:
    """NMLinear nodes with the same W; a block of bytes holds 8 rows."""
    size = len(weight)
    layout = Layout(case.n, case.m, size, size)
    packed = pack(torch.from_numpy(weight), layout).numpy()
    attributes = {"n": case.n, "m": case.m, "in_features": size, "out_features": size}
    attributes |= {"values": "float32", "group": 0, "layout": 1, "domain": "sparsify"}
    turned = [np.roll(packed, layout.block_bytes * i) for i in range(layers)]
    return chain(turned, "NMLinear", attributes, size, tokens, path)


def chain(
    contents: list[np.ndarray],
    operator: str,
    attributes: dict[str, Any],
    size: int,
    tokens: int,
    path: Path,
) -> Path:
    names = ["x", *(f"x{i}" for i in range(1, len(contents))), "y"]
    graph = helper.make_graph(
        [
            helper.make_node(operator, [names[i], f"w{i}"], [names[i + 1]], **attributes)
            for i in range(len(contents))
        ],
        "layers",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [tokens, size])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [tokens, size])],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(contents)],
    )
    domains = [("", 13), ("sparsify", 1)] if "domain" in attributes else [("", 13)]
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def measure(
    case: Case, size: int, tokens: int, rounds: int, worker: Worker, folder: Path
) -> tuple[Row, Any]:
    """Both in turns, an untimed run before three timed ones; and what DeepSparse says of itself."""
    layers = math.ceil(STREAMED / (0.2 * 4 * size**2))
    theirs, ours = weights(case, size)
    x = np.random.default_rng(3).standard_normal((tokens, size), dtype=np.float32)
    np.save(folder / "x.npy", x)
    files = {name: str(folder / f"{name}.npy") for name in ("x", "y")}
    model = dense_chain(theirs, layers, tokens, folder / "theirs.onnx")
    facts = worker.ask(model=str(model), tokens=tokens, **files)
    mine = model
    if case.n:
        mine = packed_chain(ours, case, layers, tokens, folder / "ours.onnx")
    session = onnxruntime_session(mine, threads=1, require_kernels=True)
    times = np.zeros((2, rounds))
    for number in range(rounds):
        answer = worker.ask(runs=4)["seconds"]
        times[:, number] = np.median(answer[1:]), np.median(runs(session, x)[1:])
    found = np.load(files["y"]), session.run(None, {"x": x})[0]
    errors = [error(y, x, w, layers) for y, w in zip(found, (theirs, ours), strict=True)]
    low, ratio, high = (float(q) for q in np.percentile(times[0] / times[1], [10, 50, 90]))
    their_us, our_us = (float(t) for t in np.median(times, axis=1) / layers * 1e6)
    seconds = facts.pop("seconds")
    row = Row(
        size, tokens, layers, case.theirs, case.ours, their_us, our_us, ratio, low, high, seconds,
        *errors,
    )  # fmt: skip
    return row, facts


def error(found: np.ndarray, x: np.ndarray, weight: np.ndarray, layers: int) -> float:
    """Relative error of a chain's output against float64."""
    exact = x.astype(np.float64)
    for i in range(layers):
        exact = exact @ np.roll(weight, 8 * i, axis=0).T.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def runs(session: Any, x: np.ndarray) -> list[float]:
    seconds = []
    for _ in range(4):
        start = time.thread_time()
        session.run(None, {"x": x})
        seconds.append(time.thread_time() - start)
    return seconds


def show(rows: list[Row], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("size", "tokens", "DeepSparse", "us a layer", "ours", "us a layer"):
        table.add_column(column, no_wrap=True)
    for column in ("ratio (10-90 %)", "compiled in", "errors"):
        table.add_column(column, no_wrap=True)
    for r in rows:
        table.add_row(
            f"{r.size}x{r.size}",
            str(r.tokens),
            r.theirs,
            f"{r.their_us:.0f}",
            r.ours,
            f"{r.our_us:.0f}",
            f"{r.ratio:.2f} ({r.low:.2f}-{r.high:.2f})",
            f"{r.compile_s:.0f} s",
            f"{r.their_error:.0e} {r.our_error:.0e}",
        )
    console.print(table, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="2048,4096", help="in = out, separated by commas")
    parser.add_argument("--tokens", default="1,128")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--venv", type=Path, default=Path("build/deepsparse"))
    parser.add_argument("--isa", choices=["avx2"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.isa:
            os.environ["NM_ARCH"] = options.isa  # what DeepSparse calls it
            run_again_for_avx2(Path(scratch))
    worker = Worker(environment(options.venv.absolute()))
    console = Console(width=200)
    rows = []
    for size in map(int, options.shapes.split(",")):
        for tokens in map(int, options.tokens.split(",")):
            for case in CASES:
                with tempfile.TemporaryDirectory() as scratch:
                    row, facts = measure(case, size, tokens, options.rounds, worker, Path(scratch))
                rows.append(row)
                show([row], console)
    show(rows, console)
    console.print(facts, machine_line(machine()), f"kernels: {native.isa()}", soft_wrap=True)
    if options.json:
        result = {"machine": machine(), "isa": native.isa(), "deepsparse": facts}
        write_json(options.json, {**result, "rows": [asdict(r) for r in rows]})


if __name__ == "__main__":
    main()
