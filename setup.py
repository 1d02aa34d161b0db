"""Builds the compiled kernels into the package; without a C++ compiler the package is installed without them.

The library talks to ONNX Runtime and through ctypes, not to Python: one file serves every version of it.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.dist import Distribution

ROOT = Path(__file__).parent
FOLDER = Path("sparsify", "_native")


def build_into(target: Path) -> None:
    """Configure, compile and install with CMake; CalledProcessError or OSError when that fails."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with tempfile.TemporaryDirectory() as work:
        configure = ["cmake", "-S", str(ROOT / "kernels"), "-B", work, *generator]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", work, "--parallel"], check=True)
        subprocess.run(["cmake", "--install", work, "--prefix", str(target)], check=True)


class BuildKernels(Command):
    """A step of `build`: into the wheel, or into the source tree for an editable install."""

    description = "build the compiled N:M kernels"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def target(self) -> Path:
        return (ROOT if self.editable_mode else Path(self.build_lib)).absolute() / FOLDER

    def run(self):
        shutil.rmtree(self.target, ignore_errors=True)
        try:
            build_into(self.target)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(self.target, ignore_errors=True)
            self.warn(f"the kernels could not be built, going on without them: {error}")

    def get_source_files(self):
        return [str(p.relative_to(ROOT)) for p in (ROOT / "kernels").rglob("*") if p.is_file()]

    def get_outputs(self):
        return [] if self.editable_mode else [str(p) for p in self.target.glob("*")]

    def get_output_mapping(self):
        return {}


class TagWheel(bdist_wheel):
    """One wheel for every Python of a platform, or of all when the kernels are not in it."""

    def get_tag(self):
        if self.get_finalized_command("build_kernels").get_outputs():
            return "py3", "none", super().get_tag()[2]
        return "py3", "none", "any"


class Platform(Distribution):
    """A distribution with files of its platform: they are installed where compiled modules would be."""

    def has_ext_modules(self):
        return True


build.sub_commands = [*build.sub_commands, ("build_kernels", None)]
setup(distclass=Platform, cmdclass={"build_kernels": BuildKernels, "bdist_wheel": TagWheel})
