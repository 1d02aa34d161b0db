"""Values of nodes, seen by interpreting the graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program


class Values(fx.Interpreter):
    """Runs a program and keeps the values of some nodes."""

    def __init__(self, program: Program, nodes: Sequence[fx.Node]) -> None:
        super().__init__(program.module)
        self._program, self._wanted = program, set(nodes)
        self._found: dict[fx.Node, Tensor] = {}

    def of(self, batch: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """The values on a batch, in evaluation mode and without gradients."""
        self._found = {}
        with evaluating(self._program.module), torch.no_grad():
            self.run(*self._program.complete(batch).values())
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node, and keep its value if it is wanted."""
        value = super().run_node(n)
        if n in self._wanted:
            self._found[n] = value
        return value
