"""A program as the module it came from: takes what the Hugging Face model takes, returns what it returns."""

from typing import Any

import transformers
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from sparsify.ir.modes import set_training
from sparsify.ir.program import Program
from sparsify.train.losses import TaskLoss


class ProgramModel(nn.Module):
    """An ordinary module over a program, for Trainer, accelerate or a hand-written loop.

    Parameters are the program's own tensors under their own names. `forward(input_ids=..., labels=...)`
    fills missing masks and positions, adds `loss` when labels are given, and returns the output class
    of the model that was traced.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.graph_module = program.module
        self._task_loss: TaskLoss | None = None

    def forward(self, **batch: Tensor) -> Any:
        """Outputs on a batch of tensors `[batch, length]` by input name, with the loss if labelled."""
        labels = batch.get("labels")
        inputs = self.program.complete({k: v for k, v in batch.items() if k != "labels"})
        outputs = self.graph_module(**inputs)
        fields = dict(zip(self.program.source.outputs, outputs, strict=True))
        if labels is not None:
            if self._task_loss is None:
                training = self.training
                self._task_loss = TaskLoss(self.program)
                self.train(training)
            fields["loss"] = self._task_loss(outputs, batch)
        return self._output_class()(**fields)

    def train(self, mode: bool = True) -> "ProgramModel":
        """Switch dropout in the graph, as `nn.Module.train` does for modules."""
        super().train(mode)
        set_training(self.program.module, mode)
        return self

    def _output_class(self) -> type:
        name = self.program.source.output_class
        for module in (transformers.modeling_outputs,):
            found = getattr(module, name, None)
            if found is not None:
                return found  # type: ignore[no-any-return]
        return ModelOutput
