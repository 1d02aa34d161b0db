"""The demo: the embedded model through two recipes, exported, timed and drawn against its dense twin."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.bar import Bar
from sparsify.data.sequences import Data, load_data, split
from sparsify.describe.count import count
from sparsify.disk.files import new_folder, write_json
from sparsify.disk.locks import locked
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import Timing, compare, to_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.pretrained.load import EMBEDDED, load_model, load_tokenizer, source_of
from sparsify.recipes import recipe
from sparsify.report.figure import bars
from sparsify.report.found import find
from sparsify.report.page import write_page
from sparsify.report.record import record

_QUALITY = ("perplexity", "tokens", "context")
LENGTH, EVALUATED, TOKENS, ROUNDS = 128, 96, 128, 25
# The same masks as `structured` chooses at once, folded in place: zeros that nobody removes.
_ZEROS = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads score=taylor sparsity=0.5} | "
    "choose-masks{of=channels score=taylor sparsity=0.5 multiple=8} | fold-masks{of=heads,channels}"
)

# The 2:4 model again, its zeros left out of the file and of the work.
_PACKED = {
    "packed": "pack-nm",
    "packed int8": "insert-quantizers{values=int8} | choose-scales | pack-nm{values=int8}",
}


def demo(out: Path, threads: int, overwrite: bool, console: Console) -> list[dict[str, Any]]:
    """Run the demo into a folder; returns the rows of its table.

    The held-out text is split: the first part calibrates and trains, the last measures perplexity.
    """
    with locked(out), new_folder(out, overwrite=overwrite) as folder:
        rows = _Demo(folder, threads, console).run()
    console.print(
        f"models, table and picture: {out}/  (demo.png, report of each run in its folder)"
    )
    return rows


class _Demo:
    def __init__(self, folder: Path, threads: int, console: Console) -> None:
        self.folder, self.threads, self.console = folder, threads, console
        self.tokenizer = load_tokenizer(source_of(EMBEDDED))
        self.training, self.testing = split(sequences(), 0.8)

    def run(self) -> list[dict[str, Any]]:
        console = self.console
        programs = {"dense": self.traced()}
        for name, text in (
            ("zeros", _ZEROS),
            ("structured", recipe("structured").text),
            ("semi-structured", recipe("semi-structured").text),
        ):
            programs[name] = self.compile(name, text)
        for name, text in _PACKED.items():
            programs[name] = self.compile(name, text, programs["semi-structured"])
        console.print("exporting to ONNX, reading back, comparing")
        paths = {
            name: export(program, self.folder / name, ["onnx"])["onnx"] / "model.onnx"
            for name, program in programs.items()
        }
        export(programs["structured"], self.folder / "structured", ["safetensors", "huggingface"])
        console.print(f"timing on ONNX Runtime, {self.threads} thread, {ROUNDS} rounds in turns")
        vocabulary = len(self.tokenizer)
        timings = compare(
            paths, "dense", [Shape(tokens=TOKENS)], vocabulary=vocabulary,
            threads=self.threads, rounds=ROUNDS,
        )  # fmt: skip
        rows = [self.row(timing, programs[timing.name], paths[timing.name]) for timing in timings]
        self.finish(rows, timings)
        return rows

    def compile(self, name: str, text: str, start: Program | None = None) -> Program:
        """A fresh trace of the model, or a copy of another variant, through one pipeline."""
        self.console.rule(name)
        self.console.print(text, soft_wrap=True, markup=False)
        report, folder = Report(), self.folder / name
        folder.mkdir()
        program = start.clone() if start else self.traced()
        with Bar(self.console) as bar:
            context = Context(data=self.training, progress=bar)
            program = parse(text).run(program, context, report=report)
        report.write(folder)
        for key, figures in context.figures.items():
            write_json(folder / f"{key}.json", figures)
        self.console.print(report.table())
        return program

    def traced(self) -> Program:
        """The embedded model as a program."""
        return trace(load_model(EMBEDDED)[0], tokenizer=self.tokenizer)

    def row(self, timing: Timing, program: Program, path: Path) -> dict[str, Any]:
        """Quality, size and speed of one variant."""
        counts = count(program, 1, TOKENS)
        quality = perplexity(lambda b: program.run(b)[0], self.testing, limit=EVALUATED)
        return {
            "name": timing.name,
            "perplexity": quality.value,
            "tokens": quality.tokens,
            "context": quality.context,
            "parameters": counts.parameters,
            "sparsity": counts.sparsity,
            "multiply_adds": counts.multiply_adds,
            "bytes": sum(part.stat().st_size for part in path.parent.glob("model.onnx*")),
            "median_ms": timing.median_ms,
            "ratio": timing.ratio,
            "ratio_low": timing.ratio_low,
            "ratio_high": timing.ratio_high,
        }

    def report(self, row: dict[str, Any], measured: dict[str, Any]) -> None:
        """The figures of one variant in its folder, and its page."""
        folder, name = self.folder / row["name"], row["name"]
        pair = [timing for timing in measured["timings"] if timing["name"] in ("dense", name)]
        record(folder, "bench", {**measured, "timings": pair})
        about = {"name": name, "kind": "program", "data": "heldout.txt"}
        record(folder, "eval", {name: {**about, **{key: row[key] for key in _QUALITY}}})
        write_page(find(folder))

    def finish(self, rows: list[dict[str, Any]], timings: list[Timing]) -> None:
        """The table, `demo.json` and `demo.png`."""
        title = f"the embedded model on ONNX Runtime CPU, {TOKENS} tokens"
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in (
            "model",
            "perplexity",
            "M params",
            "zeros",
            "MB",
            "ms",
            "speed",
            "10-90 %",
        ):
            table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
        for row in rows:
            table.add_row(
                row["name"],
                f"{row['perplexity']:.2f}",
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['sparsity']:.0%}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
            )
        self.console.print(table)
        self.console.print(
            f"perplexity: held-out text, context {LENGTH}; zeros: of the linears' weights; speed: "
            f"against dense, {self.threads} thread; {machine_line(machine())}",
            soft_wrap=True,
        )
        measured = to_json(timings)
        write_json(self.folder / "demo.json", {**measured, "rows": rows})
        for row in rows:
            self.report(row, {**measured, "threads": self.threads, "file": "onnx"})
        bars(rows, self.folder / "demo.png", "the embedded model, dense and sparse")


def sequences() -> Data:
    """The held-out text as sequences of the demo's length, for examples."""
    source = source_of(EMBEDDED)
    return load_data(str(Path(source) / "heldout.txt"), load_tokenizer(source), LENGTH)
