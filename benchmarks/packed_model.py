"""A whole decoder with packed 2:4 and 2:8 weights on ONNX Runtime: bytes on disk, speed, error of the logits.

Hidden 2048, 4 layers, random weights. Beside the packed models stand what ONNX Runtime itself offers for
the dense one: float32, int8 by `quantize_dynamic`, int4 by `MatMulNBits` (block 128, accuracy level 4). The
tied head stays float32 in all of them. Timed by the code of `sparsify-fx bench`: all in one process, in
turns. The error is that of the rounding, `|y - y'| / |y|` over the logits: y' of the file, y of the float32
model with the same weights removed, run by torch. What removing weights costs in quality shows only
on a trained model.

    python benchmarks/packed_model.py [--threads 1,2] [--rounds 20] [--isa avx2] [--keep DIR] [--json FILE]

With `--keep DIR` the models stay there, for `sparsify-fx bench DIR/int8-2-4 --against DIR/dense`.
`--isa avx2` limits ONNX Runtime and our kernels to AVX2 on a processor that has more.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from ort_avx2 import run_again_for_avx2
from ort_rounded import blocks_int4, dynamic_int8
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import Program, export, native, parse, trace
from sparsify.disk.files import write_json
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import Timing, compare, open_session
from sparsify.measure.machine import machine, machine_line

VOCABULARY, LENGTHS, ERROR_LENGTH = 8192, (1, 128), 128
DENSE, PATTERNS = "dense", ("2:4", "2:8")


@dataclass(frozen=True)
class Model:
    """A file to time, its bytes with the weights beside it, and the relative error of its logits."""

    path: Path
    size: int
    error: float


def program(layers: int, hidden: int) -> Program:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 256,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    return trace(LlamaForCausalLM(config).eval())


def packing(pattern: str, values: str) -> str:
    """The pipeline that packs weights which have their zeros already."""
    if values == "float32":
        return f"pack-nm{{pattern={pattern}}}"
    rounding = f"insert-quantizers{{values={values}}} | choose-scales"
    return f"{rounding} | pack-nm{{pattern={pattern} values={values}}}"


def batch() -> dict[str, Tensor]:
    """One sequence of random tokens."""
    size = (1, ERROR_LENGTH)
    ids = torch.randint(VOCABULARY, size, generator=torch.Generator().manual_seed(0))
    places = torch.arange(ERROR_LENGTH).expand(size)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}


def measured(path: Path, model: Program) -> Model:
    """A file with its size, and its error against the logits of a program in torch."""
    inputs, session = batch(), open_session(path)
    feeds = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    found = torch.from_numpy(session.run(None, feeds)[0]).double()
    exact = model.run(inputs)[0].double()
    error = float((found - exact).norm() / exact.norm())
    return Model(path, sum(p.stat().st_size for p in path.parent.glob(path.name + "*")), error)


def models(
    folder: Path, formats: Sequence[str], make: Callable[[], Program]
) -> Iterator[tuple[str, Model]]:
    """Write and check every file; those of a kind of values together, the one without zeros first."""
    dense, plain = make(), folder / "dense"
    path = export(dense, plain, formats)["onnx"] / "model.onnx"
    rivals = {
        "float32": lambda: path,
        "int8": lambda: dynamic_int8(path, folder / "ort-int8"),
        "int4": lambda: blocks_int4(path, folder / "ort-int4"),
    }
    for values, rival in rivals.items():
        yield f"{values} {DENSE}", measured(rival(), dense)
        for pattern in PATTERNS:
            zeros = f"insert-masks | choose-masks{{pattern={pattern}}} | fold-masks"
            exact = parse(zeros).run(make())
            packed = parse(packing(pattern, values)).run(exact.clone())
            place = folder / f"{values}-{pattern.replace(':', '-')}"
            file = export(packed, place, formats)["onnx"] / "model.onnx"
            yield f"{values} {pattern}", measured(file, exact)


def timed(found: dict[str, Model], threads: int, rounds: int) -> tuple[list[Timing], list[Timing]]:
    """Timings against the float32 model without zeros, and against the one in the same values."""
    names = [*found]
    groups = [(names, f"float32 {DENSE}")]
    for values in ("float32", "int8", "int4"):
        groups.append(([n for n in names if n.startswith(values)], f"{values} {DENSE}"))
    timings = [
        compare(
            {name: found[name].path for name in group},
            baseline,
            [Shape(tokens=length) for length in LENGTHS],
            vocabulary=VOCABULARY,
            threads=threads,
            rounds=rounds,
        )
        for group, baseline in groups
    ]
    return timings[0], [row for rows in timings[1:] for row in rows]


def show(
    found: dict[str, Model],
    timings: list[Timing],
    own: list[Timing],
    threads: int,
    console: Console,
) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("model", "tokens", "threads", "ms (10-90 %)", "speed (10-90 %)", "of its kind"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "logit error"):
        table.add_column(column, no_wrap=True, justify="right")
    rivals = {(row.name, row.tokens): row for row in own}
    for row in timings:
        rival = rivals[row.name, row.tokens]
        table.add_row(
            row.name,
            str(row.tokens),
            str(threads),
            f"{row.median_ms:.1f} ({row.p10_ms:.1f}-{row.p90_ms:.1f})",
            speed(row),
            speed(rival),
            f"{found[row.name].size / 1e6:.1f}",
            f"{found[row.name].error:.1e}",
        )
    console.print(table, soft_wrap=True)


def speed(row: Timing) -> str:
    return f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--isa", choices=["avx2"])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.isa:
            run_again_for_avx2(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        formats = ["onnx", "safetensors"] if options.keep else ["onnx"]
        make = partial(program, options.layers, options.hidden)
        tell(dict(models(options.keep or Path(scratch), formats, make)), options)


def tell(found: dict[str, Model], options: argparse.Namespace) -> None:
    """Time files and print them, on each number of threads; and the same as JSON."""
    console, rows = Console(width=200), []
    for threads in map(int, options.threads.split(",")):
        timings, own = timed(found, threads, options.rounds)
        show(found, timings, own, threads, console)
        rows += [
            {**asdict(row), "against": kind, "threads": threads}
            for kind, group in (("float32 dense", timings), ("its kind", own))
            for row in group
        ]
    console.print(machine_line(machine()), f"kernels: {native.isa()}", soft_wrap=True)
    if options.json:
        files = {name: {"bytes": m.size, "error": m.error} for name, m in found.items()}
        facts = {"machine": machine(), "isa": native.isa()}
        write_json(options.json, {**facts, "models": files, "timings": rows})


if __name__ == "__main__":
    main()
