"""The limits of this machine, for the share that a kernel reaches: memory bandwidth and FMA peak."""

import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "roofline.cpp"


def roofline(threads: list[int]) -> dict[int, tuple[float, float]]:
    """GB/s read from memory and GFLOP/s in float32 by threads; empty without a C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        program = str(Path(scratch) / "roofline")
        flags = ["-O3", "-std=c++17", "-march=native", "-pthread", str(SOURCE), "-o", program]
        subprocess.run([compiler, *flags], check=True)
        words = [program, *map(str, threads)]
        lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return {int(count): (float(read), float(work)) for count, read, work in rows}
