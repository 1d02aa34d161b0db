"""One-shot pruning layer by layer: each linear from the inputs that the pruned linears before it give.

    for each cut:  run every batch from the cut before;  sum x x^T;  prune the linears that read x

One forward pass over the data in all; inside a layer the order is the truly sequential one (queries, keys and
values; output; gate and up; down). With `order="layer"` all sums of a layer are taken before any of it is
pruned, in two passes, as in Wanda's code. What is pruned to N:M in float32 runs from packed bytes from then
on, with half the multiply-adds. Source: SparseGPT (2301.00774), section 4, there with two passes.
"""

import contextlib
import shutil
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from sparsify import native, ranks
from sparsify.data.sequences import Data, sample
from sparsify.data.shares import own_batches
from sparsify.disk.files import ABOUT, WORK, forget, read_mapping, reading, write_json
from sparsify.disk.hashes import of_tensor, write_hashes
from sparsify.engine.agreement import check_same
from sparsify.engine.contract import Progress, Silent
from sparsify.engine.fingerprint import data_fingerprint
from sparsify.engine.publish import publish
from sparsify.engine.resume import bind, surroundings
from sparsify.ir.device import device_of_rank
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.facts.fitting import check_data
from sparsify.ir.features.packed_nm import PackedProduct, packed_product
from sparsify.ir.run.stages import Stage, Values, run_stage, stages
from sparsify.ir.trace.weightless import trace_weightless
from sparsify.ir.views.linear import Linear, out_in
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.select.collector import padding
from sparsify.select.one_shot import prune_each
from sparsify.select.statistics import Statistics
from sparsify.select.weights import check_axes
from sparsify.signals import stop_of
from sparsify.stream.activations import Activations
from sparsify.stream.checkpoint import Borrowed, Checkpoint
from sparsify.stream.job import Job, take, told
from sparsify.stream.output import Shards
from sparsify.stream.places import Places
from sparsify.stream.sums import StageSums
from sparsify.tensors.packing.layout import Layout, packable

_PROGRESS = "progress.json"


def prune(job: Job, data: Data, progress: Progress | None = None, *, resume: bool = False) -> Path:
    """Prune a Hugging Face folder into a new one, one layer in memory at a time; the new folder.

    The new folder loads with stock `from_pretrained`; `sparsify.json` there says what each linear has
    become. With `resume` an interrupted run goes on at the layer it had reached, to the same bytes, if model
    and data are the same. Raises DataError, OptionError, TraceError, PipelineError for the state of
    another run, and InUse when another process is writing there.
    """
    work = job.out / WORK
    with contextlib.ExitStack() as held:
        ranks.by_first(lambda: take(job, held, resume=resume))
        try:
            run = _Run(job, data, work, progress or Silent())
            identity = run.identity()
            check_same(identity, "before the first layer")
            ranks.by_first(lambda: bind(work, identity))
            run.go()
            ranks.by_first(run.publish)
        except BaseException as error:
            stop = stop_of(error)
            if not (work / _PROGRESS).is_file():  # nothing to go on from
                if ranks.is_first():
                    forget(work)
            elif stop is not None:
                stop.kept = (
                    f"the layers that are done are kept in '{work}'; the same command with --resume "
                    "goes on"
                )
            raise
    return job.out


class _Run:
    """The state of one run: the program and its weights, what crosses the cut, what is written."""

    def __init__(self, job: Job, data: Data, work: Path, progress: Progress) -> None:
        self.job, self.work, self.progress = job, work, progress
        self.program = trace_weightless(
            job.model, job.dtype, trust_remote_code=job.trust_remote_code
        )
        check_data(data, admission_of_program(self.program))
        views = targeted(self.program, job.targets, job.ignore, experts=True)
        refuse_shared(self.program, views, "pruning it would change more than a linear")
        check_axes(self.program, views, job.how.wanted)
        self.stages = stages(self.program, views)
        self.source = Path(job.model)
        dtype = next(p.dtype for p in self.program.module.parameters())
        found = dict.fromkeys(s.layer for s in self.stages if s.layer is not None)
        device = job.device
        if isinstance(device, str) and device != "auto":
            device = device_of_rank(device)
        self.places = Places(device, [layer.tensors for layer in found])
        self.borrowed = Borrowed(self.program, Checkpoint(self.source), dtype, self.places)
        self.shards = Shards(work / "shards")
        self.activations = Activations(work / "activations" if job.on_disk else None)
        chosen = sample(data, job.samples, job.seed)
        # Of this rank, by their number among all: every rank has its own, and adds up with the others.
        numbers = ranks.own(range(-(-len(chosen) // job.batch)))
        parts = own_batches(data, chosen, job.batch)
        self.inputs = {
            number: self.program.complete(part) for number, part in zip(numbers, parts, strict=True)
        }
        self.data = data
        self.rows: list[dict[str, Any]] = []
        # Pruned weights of the layer at hand, as they are run where the kernels are faster.
        self.packed: dict[fx.Node, PackedProduct] = {}

    def identity(self) -> dict[str, str]:
        """What decides every bit beside the options: weights and data as fingerprints, the surroundings."""
        return {
            "weights": self.borrowed.checkpoint.fingerprint(),
            "data": data_fingerprint(self.data),
            **surroundings(str(self.job.device)),
        }

    def go(self) -> None:
        """Every stage, from the first or from where an interrupted run had stored its cut."""
        first = self._restore()
        check_same({"progress": str(first)}, "before the first layer")
        self.progress.start("prune", (len(self.stages) - first) * len(self.inputs))
        for numbers in self._together(first):
            self._collect(numbers, stored=numbers[0] == first and first > 0)
        self._write_layer(len(self.stages))

    def _together(self, first: int) -> list[list[int]]:
        """The stages that are pruned from one look at the model: each alone, or those of a layer."""
        numbers = list(range(first, len(self.stages)))
        if self.job.order == "linear":
            return [[number] for number in numbers]
        # What lies in no layer is looked at alone.
        parts = groupby(numbers, key=lambda number: self.stages[number].layer or number)
        return [list(part) for _, part in parts]

    def _collect(self, numbers: Sequence[int], *, stored: bool) -> None:
        """Take the sums of some stages, prune them, and leave the cut before the last of them."""
        first, started = numbers[0], time.perf_counter()
        sums = [self._sums(self.stages[n]) for n in numbers]
        self._need(numbers[1:] if stored else numbers)
        self.progress.rename(self._title(numbers))
        for index, inputs in self.inputs.items():
            values, kept = self.activations[index] if first else inputs, padding(inputs)
            for number, total in zip(numbers, sums, strict=True):
                stage = self.stages[number]
                if not (stored and number == first):
                    values = self._run(stage, values)
                if number == first and not stored:
                    self.activations[index] = values
                total.add(values, kept)
                self.progress.advance(stage=number + 1)
        if self._begins_layer(first) and not stored:
            self._write_layer(first)
            self._store(first)
        for total in sums:
            total.add_up()
        for number in numbers:
            # Taken out, so that the sums of a stage go when it is done.
            self._prune_stage(self.stages[number], sums.pop(0).statistics(), started)
            started = time.perf_counter()
        if len(numbers) > 1 and numbers[-1] + 1 < len(self.stages):
            self._go_on(numbers[1:])

    def _title(self, numbers: Sequence[int]) -> str:
        """What the bar says: the linear at hand, or the layer whose linears are looked at together."""
        stage = self.stages[numbers[0]]
        if stage.layer is None or len(numbers) == 1:
            return stage.linears[0].weight
        return stage.layer.name

    def _sums(self, stage: Stage) -> StageSums:
        device = self.places.of(stage.linears[0].weight)
        return StageSums(self.program, stage, device, gram=self.job.how.needs_gram)

    def _run(self, stage: Stage, values: Values) -> Values:
        place = self.places.of(stage.linears[0].weight)
        return run_stage(self.program, stage, values, place, self.packed)

    def _need(self, numbers: Sequence[int]) -> None:
        self.borrowed.need([path for number in numbers for path in self.stages[number].reads])

    def _go_on(self, numbers: Sequence[int]) -> None:
        """Move the cut over stages that are pruned now."""
        self._need(numbers)
        for index in self.inputs:
            values = self.activations[index]
            for number in numbers:
                values = self._run(self.stages[number], values)
            self.activations[index] = values

    def _prune_stage(self, stage: Stage, seen: Sequence[Statistics], started: float) -> None:
        """Prune the linears of a stage; the first of them bears what the stage took before."""
        for view in stage.linears:
            mask = self._prune(view, seen)
            now, sparsity = time.perf_counter(), 1 - float(mask.float().mean())
            row = {"weight": view.weight, "sparsity": sparsity, "seconds": now - started}
            self.rows.append(row)
            started = now

    def _prune(self, view: Linear, seen: Sequence[Statistics]) -> Tensor:
        """Prune one linear; its keep-mask `[out, in]`, of experts `[experts, out, in]`."""
        self.borrowed.need([view.weight])
        weight = out_in(view, self.program.tensor(view.weight).detach())
        new, mask = prune_each(self.job.how, view, weight, seen)
        new = new.to(weight.dtype)
        self.borrowed.put(view.weight, out_in(view, new).contiguous())
        self._pack(view, new.where(mask, 0))
        return mask

    def _pack(self, view: Linear, weight: Tensor) -> None:
        """Have a pruned linear run from packed bytes, where that is faster: float32 on the CPU."""
        pattern, kernels = self.job.how.wanted.pattern, native.library() is not None
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        if pattern is None or not (packable(pattern) and here and kernels):
            return
        rows, columns = weight.shape[-2:]
        made = packed_product(view, weight, Layout(pattern.n, pattern.m, columns, rows))
        if made is not None:
            self.packed[view.node] = made

    def _begins_layer(self, number: int) -> bool:
        """Whether another layer, or a linear in none, begins with a stage."""
        layer = self.stages[number].layer
        return number > 0 and (layer is None or layer is not self.stages[number - 1].layer)

    def _rest_of_layer(self, number: int) -> list[str]:
        """What the layer that ends before a stage holds beside the linears that are pruned."""
        layer = self.stages[number - 1].layer
        if layer is None or any(stage.layer is layer for stage in self.stages[number:]):
            return []
        pruned = {view.weight for stage in self.stages for view in stage.linears}
        return [p for p in layer.tensors if p in self.borrowed.names and p not in pruned]

    def _write_layer(self, number: int) -> None:
        """Write the weights of the layer before a stage, and forget every weight."""
        inside = self._rest_of_layer(number)
        self.borrowed.need(inside)
        pruned = {view.weight for stage in self.stages[:number] for view in stage.linears}
        paths = {*inside, *(path for path in self.borrowed.held if path in pruned)}
        tensors = self.borrowed.stored(paths)
        hashes = {path: of_tensor(self.borrowed.held[path]) for path in sorted(paths)}
        check_same(hashes, f"before stage {number}")
        if tensors and ranks.is_first():
            self.shards.write(number, tensors)
        self.borrowed.release(list(self.borrowed.held))
        self.packed.clear()

    def _store(self, number: int) -> None:
        """Keep the cut before a stage, so that a killed run can go on from it."""
        here = self.work / f"cut-{number}"
        self.activations.store(here, self.inputs)
        if not ranks.is_first():
            return
        # Not this one, which a run may have left that was killed before it wrote its progress.
        before = [folder for folder in self.work.glob("cut-*") if folder != here]
        write_json(self.work / _PROGRESS, {"stage": number, "rows": self.rows})
        for folder in before:
            shutil.rmtree(folder)

    def _restore(self) -> int:
        path = self.work / _PROGRESS
        if not path.is_file():
            return 0
        progress = read_mapping(path)
        with reading(path):
            self.rows, number = list(progress["rows"]), int(progress["stage"])
        self.activations.restore(self.work / f"cut-{number}", self.inputs)
        return number

    def publish(self) -> None:
        """Write what no layer holds, then the folder as it is loaded."""
        self.activations.clear()
        checkpoint, written = self.borrowed.checkpoint, self.shards.keys()
        rest = {
            k: checkpoint.read(k, self.borrowed.dtype) for k in checkpoint.files if k not in written
        }
        if rest:
            self.shards.write(0, rest)

        def write(folder: Path) -> None:
            self.shards.gather(self.source, folder, self.job.dtype)
            write_json(folder / ABOUT, {**told(self.job), "linears": self.rows})
            write_hashes(folder)

        # Without its config a folder is no model yet.
        publish(self.work, self.job.out, write, (), last="config.json")
