"""safetensors: the program itself, graph and all, as `sparsify.load` reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.engine.contract import Exporter, Reader
from sparsify.engine.export import EVERY_FEATURE
from sparsify.ir.program import Program
from sparsify.ir.storage.folder import load, write


@dataclass(frozen=True)
class Safetensors(Exporter):
    """Write every tensor, the graph, the plan and the pipeline text; comes back bit for bit."""

    name: ClassVar[str] = "safetensors"
    accepts: ClassVar[frozenset[str]] = EVERY_FEATURE
    tolerance: ClassVar[float] = 0.0

    def usage(self, program: Program) -> str:
        """The program, run on the inputs it was traced with."""
        return (
            "import sparsify\n\n"
            'program = sparsify.load(".")\n'
            "outputs = dict(zip(program.source.outputs, program.run(), strict=True))"
        )

    def write(self, program: Program, folder: Path) -> None:
        """Write the program's files."""
        write(program, folder)

    def read_back(self, program: Program, folder: Path) -> Reader:
        """The loaded program."""
        loaded = load(folder)

        def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return loaded.run(inputs)

        return run
