"""A wheel installed into a fresh environment of every version of Python that is here, and tried there.

    python tests/matrix/matrix.py WHEEL [--python 3.11,3.12] [--json FILE] [--keep FOLDER]

An interpreter is looked for on the path, by `uv python find`, and among those of pyenv; one that is not
here is said to be missing, and is no failure. What pip is told elsewhere (an index, a folder of wheels)
counts. Exits with 1 when an installation or what is tried in it fails, or no interpreter is found.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERSIONS = "3.11,3.12,3.13,3.14"
_COLUMNS = ("python", "result", "install", "smoke", "kernels", "torch", "onnxruntime")


def candidates(version: str) -> Iterator[str]:
    """Programs that may be a version of Python, those to be preferred first."""
    name = f"python{version}"
    yield from filter(None, [shutil.which(name)])
    if shutil.which("uv"):
        command = ["uv", "python", "find", "--no-python-downloads", version]
        yield said(command)
    if shutil.which("pyenv"):
        folder = Path(said(["pyenv", "root"]) or "/nowhere") / "versions"
        yield from (str(path) for path in sorted(folder.glob(f"{version}.*/bin/{name}")))


def interpreter(version: str) -> str | None:
    """A Python of a version that starts and says that it is one; None where there is none."""
    ask = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for program in candidates(version):
        if program and said([program, "-c", ask]) == version:
            return program
    return None


def said(command: list[str]) -> str:
    """What a command prints, nothing where it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def tried(version: str, wheel: Path, folder: Path) -> dict[str, Any]:
    """The row of one version: where its Python is, what was installed and how it went."""
    python = interpreter(version)
    if python is None:
        return {"python": version, "result": "not on this machine"}
    row: dict[str, Any] = {
        "python": said([python, "-c", "import platform as p; print(p.python_version())"])
    }
    made, started = folder / "venv" / "bin" / "python", time.perf_counter()
    pip = [str(made), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    for command in ([python, "-m", "venv", str(folder / "venv")], pip):
        error = failure(command, folder)
        if error:
            return {**row, "result": "not installed", "error": error}
    row["install"] = round(time.perf_counter() - started, 1)
    smoke = [str(made), str(ROOT / "tests" / "matrix" / "smoke.py"), str(folder / "made")]
    error, output = ran(smoke, folder)
    if error:
        return {**row, "result": "failed", "error": error}
    return {**row, "result": "works", **json.loads(output.splitlines()[-1])}


def failure(command: list[str], folder: Path) -> str:
    """The last lines of what a command complains of, empty when it works."""
    return ran(command, folder)[0]


def ran(command: list[str], folder: Path) -> tuple[str, str]:
    """The complaint of a command, empty when it works, and its output; run away from our sources."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    return ("" if run.returncode == 0 else run.stderr[-2000:] or "no word"), run.stdout


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns."""
    cells = [_COLUMNS, *(tuple(map(str, cells_of(row))) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def cells_of(row: dict[str, Any]) -> Iterator[Any]:
    """What a row shows in each column."""
    versions = row.get("versions", {})
    yield row["python"]
    yield row["result"]
    for name in ("install", "seconds"):
        yield f"{row[name]} s" if name in row else ""
    yield row.get("kernels") or ("no" if versions else "")
    yield from (versions.get(name, "") for name in _COLUMNS[5:])


def main() -> int:
    """Try every version and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=VERSIONS)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--keep", type=Path, help="the folder for the environments, kept afterwards"
    )
    options = parser.parse_args()
    rows = []
    for version in options.python.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep / version if options.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            rows.append(tried(version, options.wheel.resolve(), folder))
        print(f"{rows[-1]['python']}: {rows[-1]['result']}", flush=True)
        if "error" in rows[-1]:
            print(rows[-1]["error"])
    print(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({"wheel": options.wheel.name, "rows": rows}, indent=1) + "\n"
        )
    results = {row["result"] for row in rows}
    return int(bool(results & {"failed", "not installed"}) or "works" not in results)


if __name__ == "__main__":
    sys.exit(main())
