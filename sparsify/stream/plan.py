"""What a streamed run will take, said before any weight is read."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparsify.errors import SparsifyError
from sparsify.ir.facts.experts import ExpertSet, expert_sets
from sparsify.ir.program import Program
from sparsify.ir.run.stages import Layer, Stage, features_across, stages
from sparsify.ir.trace.weightless import trace_weightless
from sparsify.ir.views.linear import Linear, feature_size, out_in
from sparsify.ir.views.targets import targeted
from sparsify.pretrained.load import dtype_of
from sparsify.select.one_shot import OneShot
from sparsify.select.statistics import Sums
from sparsify.select.weights import Target
from sparsify.stream.job import Job
from sparsify.stream.places import Places

# Side of the matrices that rates are measured on: large enough to run at full speed, and quick.
_SIDE, _ROWS = 1024, 2048


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, its seconds by part, and its peak of resident memory in bytes."""

    layers: int
    linears: int
    weights: int
    tokens: int
    forward: float
    sums: float
    choices: float
    memory: int

    @property
    def seconds(self) -> float:
        """All parts together; reading and writing files not counted."""
        return self.forward + self.sums + self.choices


def plan(job: Job, length: int) -> Plan:
    """Trace without weights and estimate, from the rates that this machine reaches on small matrices.

    `length` is the tokens in a sequence. Counted are the linears (attention's own products are left out),
    the sums of x x^T, and the choices; memory is that of the process now, what crosses the widest cut,
    one layer, and the work of the largest choice.
    """
    program = trace_weightless(job.model, job.dtype, trust_remote_code=job.trust_remote_code)
    found = stages(program, targeted(program, job.targets, job.ignore, experts=True))
    tokens = job.samples * length
    rates = _Rates.measured(job)
    linears = [
        matrix for stage in found for view in stage.linears for matrix in _shapes(program, view)
    ]
    weights = sum(rows * columns for rows, columns in linears)
    read = _weights_of_a_token(program, found)
    inputs = [feature_size(stage.x) for stage in found]
    gram = job.how.needs_gram
    return Plan(
        layers=len({stage.layer for stage in found} - {None}),
        linears=len(linears),
        weights=weights,
        tokens=tokens,
        forward=2 * read * tokens / rates.product,
        sums=sum((2 * n * n if gram else 2 * n) * tokens / rates.sums for n in inputs),
        choices=sum(_work(job, rows, columns) / rates.choice for rows, columns in linears),
        memory=_resident() + _held(program, found, job, tokens),
    )


def _work(job: Job, rows: int, columns: int) -> int:
    """What a choice takes, in units that `_Rates.choice` is measured in."""
    return columns * columns * (columns + rows) if job.how.needs_gram else rows * columns


@dataclass(frozen=True)
class _Rates:
    """Units a second: multiply-adds twice of a linear and of a sum, and work of a choice."""

    product: float
    sums: float
    choice: float

    @classmethod
    def measured(cls, job: Job) -> "_Rates":
        device = Places(job.device, []).of("")
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(_ROWS, _SIDE, generator=draw).to(device)
        weight = torch.randn(_SIDE, _SIDE, generator=draw).to(device)
        gram = job.how.needs_gram
        sums = Sums(_SIDE, gram=gram, device=device)
        seen = Sums(_SIDE, gram=gram, device=device)
        seen.add(x)
        statistics = seen.statistics()
        how = OneShot(job.how.method, Target(0.5)) if job.how.wanted.pattern is None else job.how
        return cls(
            product=product_rate(dtype_of(job.dtype), device),
            sums=(2 * _SIDE**2 if gram else 2 * _SIDE) * _ROWS / _seconds(lambda: sums.add(x)),
            choice=_work(job, _SIDE, _SIDE) / _seconds(lambda: how(weight, statistics)),
        )


def product_rate(dtype: torch.dtype, device: torch.device | str) -> float:
    """Twice the multiply-adds a second of a linear of this process, on matrices large enough for it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _SIDE, generator=draw).to(device, dtype)
    weight = torch.randn(_SIDE, _SIDE, generator=draw).to(device, dtype)
    return 2 * _ROWS * _SIDE**2 / _seconds(lambda: torch.nn.functional.linear(x, weight))


def _seconds(call: Callable[[], Any]) -> float:
    """The least of three timings."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def _held(program: Program, found: list[Stage], job: Job, tokens: int) -> int:
    """Bytes in memory at the worst moment, beside the process as it is."""
    size = dtype_of(job.dtype).itemsize
    batch = job.batch / max(1, job.samples)
    widest = max(features_across(stage) for stage in found) * tokens * size
    layers: dict[Layer | None, int] = {}
    choice = 0
    for stage in found:
        columns = feature_size(stage.x)
        rows = max(_shapes(program, view)[0][0] for view in stage.linears)
        layers[stage.layer] = layers.get(stage.layer, 0) + sum(
            size * program.tensor(view.weight).numel() for view in stage.linears
        )
        experts = max(len(_shapes(program, view)) for view in stage.linears)
        square = 4 * columns * columns * experts if job.how.needs_gram else 0
        choice = max(choice, 5 * square + 4 * 4 * rows * columns)
    return int(widest * (batch if job.on_disk else 1)) + max(layers.values()) + choice


def _shapes(program: Program, view: Linear) -> list[tuple[int, int]]:
    """Rows and columns of every matrix of a linear."""
    *experts, rows, columns = out_in(view, program.tensor(view.weight)).shape
    return [(int(rows), int(columns))] * math.prod(experts)


def _weights_of_a_token(program: Program, found: list[Stage]) -> int:
    """The weights that a token is multiplied by: of experts those of as many as it is sent to."""
    sent = {path: one.chosen / one.size for one in _experts(program) for path in one.tensors}
    return int(
        sum(
            program.tensor(view.weight).numel() * sent.get(view.weight, 1)
            for stage in found
            for view in stage.linears
        )
    )


def _experts(program: Program) -> list[ExpertSet]:
    """The experts of every choice; none where the graph does not tell who chooses them."""
    try:
        return expert_sets(program)
    except SparsifyError:
        return []


def _resident() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
