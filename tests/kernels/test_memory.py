"""No kernel leaves its buffers, whatever the packed bytes are: with guard pages, and under sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify import native

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
ISAS = native.available_isas() if native.library() else ("none",)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="written for Linux")


def call(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=HERE, env=os.environ | environment, capture_output=True, text=True, timeout=900
    )


@LINUX
@pytest.mark.parametrize("isa", ISAS)
def test_the_installed_library_stays_between_guard_pages(isa: str, library: Path) -> None:
    run = call(sys.executable, "guard_pages.py", library, "1", "400", SPARSIFY_ISA=isa)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{isa} 400\n", "")


@LINUX
def test_the_guard_is_felt() -> None:
    """The test above must be able to fail: one byte beyond kills the program."""
    step = (
        "import guard_pages, ctypes\n"
        "memory = guard_pages.Guarded(100, b'', True)\n"
        "ctypes.string_at(memory.address, 100)\n"
        "print('inside', flush=True)\n"
        "ctypes.string_at(memory.address, 101)\n"
        "print('beyond')\n"
    )
    run = call(sys.executable, "-c", step)
    assert run.returncode < 0
    assert run.stdout == "inside\n"


@LINUX
def test_threads_in_a_forked_process(library: Path) -> None:
    """A fork has the memory of the threads, not the threads: it must not wait for them."""
    step = (
        "import guard_pages, os, random, sys\n"
        "library = guard_pages.load(sys.argv[1])\n"
        "work = lambda: [guard_pages.product(library, random.Random(i), 3) for i in range(20)]\n"
        "work()\n"
        "child = os.fork()\n"
        "work()\n"
        "if child:\n"
        "    print(os.waitpid(child, 0)[1])\n"
    )
    run = call(sys.executable, "-W", "ignore", "-c", step, library)
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n", "")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels and kernels/fuzz with AddressSanitizer and UndefinedBehaviorSanitizer."""
    if not (shutil.which("g++") and shutil.which("cmake")):
        pytest.skip("needs g++ and cmake")
    folder = tmp_path_factory.mktemp("sanitized")
    options = ["-DSPARSIFY_SANITIZE=ON", "-DSPARSIFY_FUZZ=ON", "-DCMAKE_CXX_COMPILER=g++"]
    for command in (
        ["cmake", "-S", KERNELS, "-B", folder, *options],
        ["cmake", "--build", folder, "--parallel", "2"],
    ):
        run = call(*command)
        assert run.returncode == 0, run.stdout + run.stderr
    return folder


@LINUX
def test_random_sizes_and_bytes_under_sanitizers(sanitized: Path) -> None:
    """A few inputs for every instruction set; `make fuzz-kernels` runs as many as there is time for."""
    run = call(sanitized / "fuzz" / "fuzz_linear", "10", "150")
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(" inputs, no error\n")


@LINUX
def test_wrong_models_under_sanitizers(sanitized: Path) -> None:
    """The tests of the operator and of damaged files once more, in a process with the sanitizers."""
    found = [call("g++", f"-print-file-name=lib{name}.so").stdout for name in ("asan", "stdc++")]
    tests = ["test_onnxruntime.py", "test_damage.py"]
    run = call(
        *(sys.executable, "-m", "pytest", "-q", "--confcutdir=.", "-p", "no:cacheprovider", *tests),
        LD_PRELOAD=" ".join(name.strip() for name in found),
        ASAN_OPTIONS="detect_leaks=0",  # Python's own
        SPARSIFY_LIBRARY=str(sanitized / "libsparsify_kernels.so"),
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert " passed" in run.stdout
