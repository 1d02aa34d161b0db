"""ONNX Runtime as an AVX2 processor would run it, on a processor that has AVX-512.

ONNX Runtime offers no switch for it. Its kernels ask the instruction XGETBV whether the system keeps
AVX-512 registers; in a copy of the package that instruction is replaced by one of the same length that
answers "AVX, not AVX-512". For measuring only.
"""

import os
import shutil
import sys
from pathlib import Path

import onnxruntime

_XGETBV = bytes.fromhex("0f01d0")
_PUSH_7_POP_RAX = bytes.fromhex("6a0758")  # bits 0 to 2: x87, SSE and AVX state
_MARK = "SPARSIFY_BENCHMARK_AVX2"


def copy_for_avx2(folder: Path) -> int:
    """Copy the installed onnxruntime into a folder and patch it; returns the number of places."""
    source = Path(onnxruntime.__file__).parent
    shutil.copytree(source, folder / "onnxruntime")
    places = 0
    for library in (folder / "onnxruntime" / "capi").glob("onnxruntime_pybind11_state*"):
        content = library.read_bytes()
        places += content.count(_XGETBV)
        library.write_bytes(content.replace(_XGETBV, _PUSH_7_POP_RAX))
    return places


def run_again_for_avx2(folder: Path) -> None:
    """Start this command again on the patched copy, our kernels limited to AVX2 too; once."""
    if os.environ.get(_MARK):
        return
    if copy_for_avx2(folder) == 0:
        raise SystemExit("this onnxruntime does not ask XGETBV; it cannot be limited to AVX2")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    limits = {_MARK: "1", "SPARSIFY_ISA": "avx2", "PYTHONPATH": path}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})
