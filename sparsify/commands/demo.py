"""The demo: a model through a few recipes, exported, timed and drawn against its dense twin."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.artifacts import loaded, traced
from sparsify.commands.bar import Bar, counted
from sparsify.commands.scenes import Variant, scene_of
from sparsify.data.load import load_data
from sparsify.data.sequences import Data, split
from sparsify.describe.count import count
from sparsify.disk.files import new_folder, write_json
from sparsify.disk.locks import locked
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import DataError
from sparsify.ir.program import Program
from sparsify.measure.latency import Timing, compare, shape_words, to_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.pretrained.load import EMBEDDED, load_tokenizer, source_of
from sparsify.pretrained.loading import STRICT
from sparsify.report.figure import bars
from sparsify.report.found import find
from sparsify.report.page import write_page
from sparsify.report.record import record
from sparsify.runtime.generate import load_onnx

_QUALITY = ("perplexity", "tokens", "context")
LENGTH, ROUNDS, WRITTEN = 128, 25, 24


def demo(
    out: Path, model: str, threads: int, overwrite: bool, console: Console
) -> list[dict[str, Any]]:
    """Run the demo of a model into a folder; returns the rows of its table.

    The embedded model's held-out text is split: the first part calibrates and trains, the last measures
    perplexity.
    """
    with locked(out), new_folder(out, overwrite=overwrite) as folder:
        rows = _Demo(folder, model, threads, console).run()
    console.print(
        f"models, table and picture: {out}/  (demo.png, report of each run in its folder)"
    )
    return rows


class _Demo:
    def __init__(self, folder: Path, model: str, threads: int, console: Console) -> None:
        self.folder, self.threads, self.console = folder, threads, console
        self.model, self.scene = model, scene_of(model)
        self.programs = {"dense": self.traced()}
        self.tokenizer = self.programs["dense"].tokenizer
        if self.tokenizer is None:
            raise DataError(f"'{model}' has no tokenizer, and the demo measures text")
        self.training, self.testing = split(sequences(self.tokenizer), 0.8)

    def run(self) -> list[dict[str, Any]]:
        console, scene, programs = self.console, self.scene, self.programs
        for variant in scene.variants:
            programs[variant.name] = self.compile(variant)
        console.print(f"exporting to {scene.format}, reading back, comparing")
        paths = {}
        for name, program in programs.items():
            with counted(name, console) as bar:
                made = export(program, self.folder / name, [scene.format], progress=bar)
            paths[name] = made[scene.format] / "model.onnx"
        for variant in scene.variants:
            if variant.also:
                export(programs[variant.name], self.folder / variant.name, variant.also)
        console.print(f"timing on ONNX Runtime, {self.threads} thread, {ROUNDS} rounds in turns")
        timings = compare(
            paths, "dense", [scene.shape], vocabulary=len(self.tokenizer),
            threads=self.threads, rounds=ROUNDS,
        )  # fmt: skip
        rows = [self.row(timing, programs[timing.name], paths[timing.name]) for timing in timings]
        self.finish(rows, timings)
        return rows

    def compile(self, variant: Variant) -> Program:
        """A fresh trace of the model, or a copy of another variant, through one pipeline."""
        self.console.rule(variant.name)
        self.console.print(variant.text, soft_wrap=True, markup=False)
        report, folder = Report(), self.folder / variant.name
        folder.mkdir()
        start = variant.start
        program = self.traced() if start is None else self.programs[start].clone()
        with Bar(self.console) as bar:
            context = Context(data=self.training, progress=bar)
            program = parse(variant.text).run(program, context, report=report)
        report.write(folder)
        for key, figures in context.figures.items():
            write_json(folder / f"{key}.json", figures)
        self.console.print(report.table())
        return program

    def traced(self) -> Program:
        """The model as a program of its own."""
        return traced(*loaded(self.model, STRICT))

    def row(self, timing: Timing, program: Program, path: Path) -> dict[str, Any]:
        """Quality, size and speed of one variant."""
        counts = count(program, 1, LENGTH)
        quality = perplexity(lambda b: program.run(b)[0], self.testing, limit=self.scene.evaluated)
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
            **self.written(path.parent),
        }

    def written(self, folder: Path) -> dict[str, str]:
        """What a variant writes behind the prompt of the scene."""
        if not self.scene.prompt:
            return {}
        made = load_onnx(folder, threads=self.threads).generate(self.scene.prompt, tokens=WRITTEN)
        return {"wrote": self.tokenizer.decode(made.ids[0], skip_special_tokens=True)}

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
        scene = self.scene
        title = f"{scene.title} on ONNX Runtime CPU, {shape_words(asdict(scene.shape))}"
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
        for row in rows:
            if "wrote" in row:
                said = f"{row['name']}: {row['wrote']}"
                self.console.print(said, markup=False, highlight=False, soft_wrap=True)
        self.console.print(
            f"perplexity: held-out text, context {LENGTH}; zeros: of the linears' weights; speed: "
            f"against dense, {self.threads} thread; {machine_line(machine())}",
            soft_wrap=True,
        )
        measured = to_json(timings)
        write_json(self.folder / "demo.json", {**measured, "rows": rows})
        for row in rows:
            self.report(row, {**measured, "threads": self.threads, "file": scene.format})
        bars(rows, self.folder / "demo.png", f"{scene.title}, dense and sparse")


def sequences(tokenizer: Any = None) -> Data:
    """The embedded model's held-out text as sequences of the demo's length, for examples."""
    source = source_of(EMBEDDED)
    tokenizer = tokenizer or load_tokenizer(source)
    return load_data(str(Path(source) / "heldout.txt"), tokenizer, LENGTH)
