"""The kernels of other processors: built for 64-bit ARM and run under an emulator, and the portable build."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsify import native
from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout, dense

KERNELS = Path(__file__).parents[2] / "kernels"
EMULATE = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
# Fast to compile and still in registers, so that the emulator is fast too. What is switched off is only an
# optimisation, and the slowest there is with unrolled code.
FAST = "-O1 -fdisable-rtl-combine"


def build(folder: Path, *options: str) -> Path:
    """Build the library and the program that checks the kernels; return the folder."""
    configure = ["cmake", "-S", str(KERNELS), "-B", str(folder), "-DSPARSIFY_CHECK=ON", *options]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def checked(*command: str) -> set[str]:
    """Run the program; return the instruction sets that it found right."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.endswith("no error") for line in lines)
    return {line.split(":")[0] for line in lines}


def shared_functions(folder: Path, isa: str) -> list[str]:
    """Return the functions of an instruction set that the linker may use in place of everybody's."""
    objects = [str(path) for path in folder.glob(f"CMakeFiles/sparsify_{isa}.dir/src/*.o")]
    assert objects
    listed = subprocess.run(
        ["aarch64-linux-gnu-nm", *objects], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listed.splitlines() if line.split()[-2:-1] in (["W"], ["V"], ["u"])]


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which(EMULATE[0])),
    reason="needs the Debian packages g++-aarch64-linux-gnu and qemu-user",
)
def test_64_bit_arm(tmp_path: Path) -> None:
    """NEON gives the reference's results; a processor without dot products gets the reference."""
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={KERNELS / 'cmake' / 'aarch64.cmake'}"
    options = ("-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={FAST}")
    folder = build(tmp_path, toolchain, *options)
    program = str(folder / "check" / "check_kernels")
    assert not shared_functions(folder, "neon")
    assert checked(*EMULATE, program) == {"neon", "reference"}
    assert checked(*EMULATE, "-cpu", "cortex-a53", program) == {"reference"}


def _flags() -> set[str]:
    """The instruction sets of this processor, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


@pytest.mark.skipif(
    not (shutil.which("cmake") and {"avx512_vnni", "avx512_vbmi2"} <= _flags()),
    reason="needs CMake and AVX-512 with VNNI and VBMI2",
)
@pytest.mark.skipif(
    "amx_int8" in _flags(), reason="the processor has tiles, and the tests beside run on them"
)
def test_tiles_over_a_model_of_them(tmp_path: Path) -> None:
    """The kernels for AMX, on tiles in plain C++, where the processor has none."""
    folder = build(tmp_path, "-DSPARSIFY_TILE_MODEL=ON", "-DCMAKE_BUILD_TYPE=Debug")
    assert checked(str(folder / "check" / "check_kernels"), "amx") == {"amx"}


@pytest.mark.skipif(
    not (shutil.which("cmake") and any(map(shutil.which, ("c++", "g++", "clang++")))),
    reason="needs CMake and a C++ compiler",
)
def test_a_processor_without_kernels_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Layout, int], Tensor]
) -> None:
    """The portable build has the reference only, which is right."""
    folder = build(tmp_path, "-DSPARSIFY_PORTABLE=ON")
    assert checked(str(folder / "check" / "check_kernels")) == {"reference"}
    monkeypatch.setenv(native.ENVIRONMENT, str(next(folder.glob("libsparsify_kernels.*"))))
    assert native.available_isas() == ("reference",)
    for layout in (Layout(2, 4, 100, 21, "float32", 0), Layout(5, 8, 100, 21, "int4", 32)):
        packed, x = draw(layout, 1), torch.randn(3, 100, generator=torch.Generator().manual_seed(1))
        y = torch.empty(3, 21)
        address, size = packed.data_ptr(), packed.numel()
        native.nm_linear(layout, address, size, None, x.data_ptr(), 3, y.data_ptr())
        bound = (x.abs() @ dense(packed, layout).abs().T) * 2e-6
        assert ((y - nm_linear_reference(x, packed, None, layout)).abs() <= bound).all()
