"""Installation with and without a compiler, on a small copy of the project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = """
cmake_minimum_required(VERSION 3.18)
project(small LANGUAGES CXX)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/small.cpp "int small() { return 1; }")
add_library(sparsify_kernels SHARED ${CMAKE_CURRENT_BINARY_DIR}/small.cpp)
install(TARGETS sparsify_kernels LIBRARY DESTINATION . RUNTIME DESTINATION .)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that build the package, with kernels that compile at once."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("sparsify", "passes", "exporters"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "CMakeLists.txt").write_text(SMALL)
    return tmp_path


def wheel(project: Path, **environment: str) -> tuple[str, list[str]]:
    """The name of the wheel that is built and the files of its `_native`."""
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "bdist_wheel"]
    run = subprocess.run(
        command, cwd=project, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (path,) = (project / "dist").iterdir()
    files = [name for name in zipfile.ZipFile(path).namelist() if "_native" in name]
    path.unlink()
    return path.name, files


@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("cmake")), reason="needs a compiler and cmake"
)
def test_with_a_compiler_the_wheel_holds_the_library_and_names_its_platform(
    project: Path,
) -> None:
    name, files = wheel(project)
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    assert [Path(file).stem for file in files] == ["libsparsify_kernels"]
    # A compiler that is gone leaves nothing of the last build behind.
    name, files = wheel(project, CXX="/bin/false")
    assert name.endswith("-py3-none-any.whl")
    assert files == []


def test_without_a_compiler_the_wheel_is_for_every_platform(project: Path) -> None:
    name, files = wheel(project, CXX="/bin/false")
    assert name.endswith("-py3-none-any.whl")
    assert files == []
