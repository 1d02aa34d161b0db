"""Virtual environments with a few packages and nothing else, and programs run in them."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def skip_unless_asked(request: pytest.FixtureRequest, mark: str) -> None:
    """Nothing is downloaded unless tests are asked for by their mark."""
    if mark not in request.config.getoption("markexpr"):
        pytest.skip(f"asked for with -m {mark}")


def pinned(package: str) -> str:
    """A requirement as the constraints of this project have it."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{package}=="))
    return line


def environment(folder: Path, *requirements: str) -> Path:
    """The Python of a new environment in a folder with these packages and what they need."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "-q", "--only-binary=:all:", *requirements]
    run = subprocess.run(pip, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return python


def run_in(python: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program away from this project and from the network's models."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [os.fspath(word) for word in (python, *words)]
    return subprocess.run(
        command, env=clean | settings, cwd=python.parent, capture_output=True, text=True
    )


def answer(python: Path, program: Path, *words: str | Path) -> Any:
    """What a program says in its last line, as JSON."""
    run = run_in(python, program, *words)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])
