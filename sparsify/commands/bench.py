"""`sparsify-fx bench`: ONNX Runtime latency against a dense model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.artifacts import open_program, refuse_for_files
from sparsify.commands.bar import counted
from sparsify.commands.options import LONGEST
from sparsify.describe.count import Counts, count
from sparsify.disk.files import write_json
from sparsify.engine.export import export
from sparsify.errors import OptionError
from sparsify.ir.facts.admission import admission_in
from sparsify.ir.program import Program
from sparsify.ir.storage.folder import is_program
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import Timing, compare, to_json
from sparsify.measure.machine import machine, machine_line
from sparsify.pretrained.load import source_of
from sparsify.pretrained.loading import STRICT, Loading
from sparsify.report.record import record


def bench(
    folder: str,
    against: str,
    tokens: Sequence[int],
    threads: int,
    rounds: int,
    json: Path | None,
    console: Console,
    loading: Loading = STRICT,
) -> list[Timing]:
    """Time two models in one process, in turns, and print medians, ratios and sizes.

    What has no `model.onnx` yet is exported to a temporary folder. Raises OptionError for lengths below 1.
    """
    _check_lengths(tokens)
    _check_loading(Path(folder), loading)
    with tempfile.TemporaryDirectory() as scratch:
        paths, counts, vocabulary = {}, {}, 2**31
        for name, place in (("dense", against), ("sparse", folder)):
            admission_in(source_of(place)).check_length(max(tokens), "sequences")
            which = loading if name == "sparse" else loading.of_another()
            paths[name], program = _onnx(place, Path(scratch) / name, which)
            if program is not None:
                counts[name] = count(program, 1, max(tokens))
                vocabulary = min(vocabulary, _vocabulary(program))
        with counted("timing") as bar:
            timings = compare(
                paths,
                "dense",
                [Shape(tokens=n) for n in tokens],
                vocabulary=vocabulary if vocabulary < 2**31 else 1000,
                threads=threads,
                rounds=rounds,
                verify=loading.verify,
                watch=bar.watch,
            )
        bytes_on_disk = {name: _bytes(path) for name, path in paths.items()}
        timed = "" if paths["sparse"].is_relative_to(scratch) else paths["sparse"].parent.name
    console.print(timing_table(timings, counts, bytes_on_disk))
    console.print(machine_line(machine()), soft_wrap=True)
    result = {
        **to_json(timings),
        "file": timed,
        "threads": threads,
        "bytes": bytes_on_disk,
        "counts": {name: value.to_json() for name, value in counts.items()},
    }
    if json is not None:
        write_json(json, result)
    if Path(folder).is_dir():
        said = record(Path(folder), "bench", result)
        console.print(said, end="\n" if said else "", style="dim", soft_wrap=True, markup=False)
    return timings


def timing_table(
    timings: Sequence[Timing], counts: dict[str, Counts], sizes: dict[str, int]
) -> Table:
    """Medians with their spread, the ratio to dense, and what stands in the file."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("model", "tokens", "ms (10-90 %)", "speed (10-90 %)", "multiply-adds", "file"):
        # Figures may break, and are never cut.
        table.add_column(column, no_wrap=column in ("model", "tokens"), overflow="fold")
    for row in timings:
        known = counts.get(row.name)
        table.add_row(
            row.name,
            str(row.tokens),
            f"{row.median_ms:.2f} ({row.p10_ms:.2f}-{row.p90_ms:.2f})",
            f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})",
            f"{known.multiply_adds / 1e6:,.1f} M at {known.length}" if known else "",
            f"{sizes[row.name] / 1e6:.2f} MB",
        )
    return table


def _onnx(place: str, scratch: Path, loading: Loading) -> tuple[Path, Program | None]:
    """The ONNX file of a model and, when there is one beside it, its program."""
    path = Path(place)
    if path.suffix == ".onnx":
        return path, None
    holder = path if is_program(path) else path / "safetensors"
    program = open_program(place, loading) if is_program(holder) or not _find(path) else None
    found = _find(path)
    if found is None:
        whole = program or open_program(place, loading)
        with counted("exporting") as bar:
            found = export(whole, scratch, ["onnx"], progress=bar)["onnx"] / "model.onnx"
    return found, program


def _check_lengths(tokens: Sequence[int]) -> None:
    if not tokens or min(tokens) < 1 or max(tokens) > LONGEST:
        raise OptionError(
            f"--tokens must be lengths of at least 1 and at most {LONGEST}, not {list(tokens)}"
        )


def _check_loading(path: Path, loading: Loading) -> None:
    """Refuse an adapter or a revision where a program or an ONNX file will be opened; OptionError."""
    program = next((p for p in (path, path / "safetensors") if is_program(p)), None)
    ours = path if path.suffix == ".onnx" else program or _find(path)
    if ours is not None:
        refuse_for_files(ours, loading)


def _find(folder: Path) -> Path | None:
    for place in (folder / "model.onnx", folder / "onnx" / "model.onnx"):
        if place.is_file():
            return place
    return None


def _vocabulary(program: Program) -> int:
    config: dict[str, Any] = dict(program.source.config)
    return int(config.get("vocab_size") or 1000)


def _bytes(path: Path) -> int:
    """The bytes of an ONNX file and the weights beside it."""
    return sum(p.stat().st_size for p in path.parent.glob(path.name + "*"))
