"""How far a program travels: the functions and files that a rewrite runs through, and its calls.

    python benchmarks/trips.py [--files]

Counted with a profiler on a decoder of two layers, `check` and `rewrite` of one pass, or the decode variant.
`moves` are the calls from one file into another.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparsify
from sparsify import Context, Program, parse, trace
from sparsify.ir.decode.variant import decoder

ROOT = Path(sparsify.__file__).parent.parent
# What has run before -> the pass that is watched.
TRIPS = (
    ("", "insert-masks"),
    ("", "insert-masks{of=channels,heads}"),
    ("insert-masks", "choose-masks{sparsity=0.5}"),
    ("insert-masks{of=channels,heads}", "choose-masks{of=channels,heads sparsity=0.5}"),
    ("insert-masks | choose-masks{pattern=2:4} | fold-masks", "pack-nm"),
)


class Trip:
    """Functions by file, and calls, of one run of ours."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.calls = self.moves = 0
        self._last = ""
        sys.setprofile(self._seen)
        try:
            run()
        finally:
            sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)):
            return
        if code.co_name.startswith("<"):
            return
        self.functions.add((code.co_filename, code.co_qualname))
        self.calls += 1
        self.moves += code.co_filename != self._last
        self._last = code.co_filename

    def files(self) -> list[str]:
        """The files, from the root of the project."""
        return sorted({str(Path(name).relative_to(ROOT)) for name, _ in self.functions})


def _program(before: str) -> Program:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=120,
        max_position_embeddings=64,
    )
    program = trace(LlamaForCausalLM(config).eval())
    return parse(before).run(program, Context()) if before else program


def _watched(before: str, text: str) -> Trip:
    program, (item,), context = _program(before), parse(text).passes, Context()
    return Trip(lambda: (item.check(program), item.rewrite(program, context)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true", help="name the files, too")
    options = parser.parse_args()
    print(f"{'pass':48} functions files  calls  moves")
    dense = _program("")
    trips = {text: _watched(before, text) for before, text in TRIPS}
    trips["the decode variant"] = Trip(lambda: decoder(dense))
    for text, trip in trips.items():
        files = trip.files()
        print(f"{text:48} {len(trip.functions):9} {len(files):5} {trip.calls:6} {trip.moves:6}")
        if options.files:
            print("".join(f"    {name}\n" for name in files), end="")


if __name__ == "__main__":
    main()
