"""The loss of what is held out of each domain, of a program in training and of its dense twin."""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sparsify.data.domains import Domain, DomainData
from sparsify.data.sequences import batches
from sparsify.errors import DataError
from sparsify.ir.program import Program
from sparsify.train.forward import Teacher, Trained
from sparsify.train.objective import Objective, Part
from sparsify.train.settings import Settings


class Validation:
    """Mean task losses in nats a label, over at most `samples` held-out sequences of each domain.

    In evaluation mode, in the precision of the training; processes share the sequences and the sums.
    """

    def __init__(
        self,
        program: Program,
        teacher: Teacher | None,
        settings: Settings,
        accelerator: Accelerator,
        samples: int,
    ) -> None:
        self.settings = replace(settings, task=1.0, balance=0.0, accumulate=1, recompute="none")
        self.accelerator, self.teacher, self.samples = accelerator, teacher, samples
        self._objective = self._objective_of(program)

    def losses(self, model: Any, data: DomainData) -> dict[str, float]:
        """The loss of each domain now; the model is in training mode afterwards."""
        model.eval()
        try:
            return self._losses(self._objective, model, data)
        finally:
            model.train()

    def dense_losses(self, data: DomainData) -> dict[str, float]:
        """The loss of each domain of the dense twin."""
        assert self.teacher is not None
        program = self.teacher.program
        return self._losses(self._objective_of(program), Trained(program).eval(), data)

    def _objective_of(self, program: Program) -> Objective:
        return Objective(program, self.settings, self.accelerator, None, None)

    def _losses(self, objective: Objective, model: Any, data: DomainData) -> dict[str, float]:
        # Not wrapped: processes may have different numbers of batches.
        bare = self.accelerator.unwrap_model(model)
        return {domain.name: self._loss(objective, bare, domain) for domain in data.domains}

    @torch.no_grad()
    def _loss(self, objective: Objective, model: Any, domain: Domain) -> float:
        """The sum over all labels of a domain, divided by their number."""
        assert domain.held is not None
        assert objective.task is not None
        share = max(1, self.settings.batch // self.accelerator.num_processes)
        chosen = range(min(self.samples, len(domain.held)))
        parts = list(batches(domain.held, chosen, share))
        total = labels = 0.0
        for batch in parts[self.accelerator.process_index :: self.accelerator.num_processes]:
            moved = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            _, figures = objective(model, Part(moved, 1.0, 1.0, None))
            total, labels = total + figures["task"], labels + objective.task.items(moved)
        total, labels = self._over_processes(total, labels)
        if not labels:
            raise DataError(
                f"what is held out of the domain '{domain.name}' has no label to measure a loss of; "
                "bring more text, or give a larger held-out share"
            )
        return total / labels

    def _over_processes(self, total: float, labels: float) -> tuple[float, float]:
        if self.accelerator.num_processes == 1:
            return total, labels
        value = torch.tensor([total, labels], dtype=torch.float64, device=self.accelerator.device)
        summed: Tensor = self.accelerator.reduce(value, "sum")
        return float(summed[0]), float(summed[1])
