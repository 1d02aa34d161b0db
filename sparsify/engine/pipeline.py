"""Pipelines: passes in order, checked against each other first, and against the laws after each step."""

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.describe.count import count_parameters, count_zeros
from sparsify.disk.locks import locked
from sparsify.engine.agreement import check_agreement, check_same
from sparsify.engine.contract import Context, Pass
from sparsify.engine.dump import Dump
from sparsify.engine.registry import parse_passes
from sparsify.engine.remedies import lacking, remedies, remedy
from sparsify.engine.report import Report, Row
from sparsify.engine.resume import Checkpoints, identity
from sparsify.errors import LawError, PipelineError, SparsifyError
from sparsify.ir.device import copied
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.facts.fitting import check_data
from sparsify.ir.program import Program
from sparsify.ir.run.agreement import strange_rounding
from sparsify.ir.run.double import is_rounding
from sparsify.ir.run.unrounded import rounds_inputs, unrounded_outputs
from sparsify.ir.tensor_names import PACKED
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify
from sparsify.select.target_shape import Heads
from sparsify.tensors.precision import largest_difference
from sparsify.text.options import refuse_negative, refuse_unbounded


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes; `str(pipeline)` is its text and `parse` the inverse."""

    passes: tuple[Pass, ...]

    def __init__(self, passes: Iterable[Pass]) -> None:
        object.__setattr__(self, "passes", tuple(passes))

    def __str__(self) -> str:
        """The pipeline as one line of text."""
        return " | ".join(str(item) for item in self.passes)

    def features_after(self, features: frozenset[str]) -> frozenset[str]:
        """The features a program has after all passes, given those before."""
        for item in self.passes:
            features = item.effect().after(features)
        return features

    def heads_left(self, program: Program) -> Heads | None:
        """The heads of every attention after all passes, where some go and options alone say how many.

        Of several choices the last before the removal counts.
        """
        chosen, left = None, None
        for item in self.passes:
            chosen = item.heads_left(program) or chosen
            if [item.name] == remedies(["mask.heads"]):
                chosen, left = None, chosen
        return left

    def check(self, program: Program, context: Context) -> None:
        """Follow features through the whole pipeline before anything runs (law 3).

        Raises PipelineError when a pass lacks a feature, data, or would insert a second time, and
        OptionError when a pass's options cannot fit the program, DataError for data that does not fit it.
        """
        features = program.features
        featured: dict[str, frozenset[str]] = {}
        if context.data is not None and any("data" in p.effect().wants for p in self.passes):
            before = sum(item.tokens_before() for item in self.passes)
            check_data(context.data, admission_of_program(program).behind(before))
        for number, item in enumerate(self.passes, 1):
            where = f"pass {number} of {len(self.passes)}, '{item}',"
            effect = item.effect()
            missing = sorted(effect.needs - features)
            if missing:
                raise PipelineError(
                    f"{where} needs {missing}, but at that point the program has {sorted(features)}"
                    + lacking(missing)
                )
            twice = sorted(effect.adds & features)
            if twice:
                raise PipelineError(f"{where} would add {twice}, which the program already has")
            barred = effect.bars & features
            if barred:
                raise PipelineError(
                    f"{where} cannot run while the program has {sorted(barred)}; {remedy(barred)}"
                )
            if "data" in effect.wants and context.data is None:
                raise PipelineError(f"{where} needs data; give --data, or Context(data=...)")
            try:
                refuse_unbounded(item)
                item.check(program)
                item.check_featured(program, featured)
                featured.update(item.featured_weights(program))
                refuse_negative(item)
                if "data" in effect.wants and context.data is not None:
                    item.check_data(program, context.data)
            except SparsifyError as error:
                raise type(error)(f"{where} {error}") from error
            features = effect.after(features)

    def run(
        self,
        program: Program,
        context: Context | None = None,
        *,
        report: Report | None = None,
        dump: Path | None = None,
        resume: Path | None = None,
        compare: bool = True,
    ) -> Program:
        """Run every pass in place, checking the laws after each; returns the program.

        The weights edited are the program's: those of the model that it was traced from, unless by copy.

        `report` receives a row a pass. `dump` gets the text and the difference of every step. `resume`
        names a folder that keeps the state after each pass: a run that finds one there goes on from it,
        and the program returned is then another object than the one given. The state is bound to its run by
        content: weights, data, pipeline, seed, device and versions.
        Where torch has a process group, all its ranks must call it alike: they share out data, rank 0 alone
        writes, and after every pass all must hold the same program.
        Raises PipelineError, also for the state of another run and for ranks that disagree, InUse when
        another process works in the folder, VerifyError, LawError, or what a pass raises; the program is
        then spent.
        """
        context, report = context or Context(), report or Report()
        self.check(program, context)
        with contextlib.ExitStack() as held:
            checkpoints = None
            if resume is not None:
                ranks.by_first(lambda: held.enter_context(locked(resume)))
                run = identity(str(self), program, context)
                check_same(run, "before the first pass")
                checkpoints = Checkpoints(resume, run)
            return self._run(program, context, report, dump, checkpoints, compare)

    def _run(
        self,
        program: Program,
        context: Context,
        report: Report,
        dump: Path | None,
        checkpoints: Checkpoints | None,
        compare: bool,
    ) -> Program:
        if context.dense is None:
            context = replace(context, dense=self._twin(program))
        done = 0
        if checkpoints is not None:
            program, done = checkpoints.restore(program, report, context.figures)
        dumper = None
        if dump is not None and ranks.is_first():
            dumper = Dump(dump, program, done, resumes=checkpoints is not None)
        outputs = program.run()
        for number, item in enumerate(self.passes[done:], done + 1):
            scratch = checkpoints.scratch(number) if checkpoints else None
            where = f"pass {number} of {len(self.passes)}, '{item}'"
            step = _Step(program, item, replace(context, scratch=scratch), where)
            row, outputs = step.run(outputs, compare)
            check_agreement(program, f"after {where}")
            report.rows.append(row)
            logging.getLogger("sparsify").info(f"{where}: {row.sentence()}")
            if dumper is not None:
                dumper.step(number, item.name, program)
            if checkpoints is not None:
                checkpoints.store(program, report, number, context.figures)
        return program

    def _twin(self, program: Program) -> Program | None:
        """The program as it is now, for passes to compare with: in half the memory where that is enough."""
        wants = frozenset[str]().union(*(item.effect().wants for item in self.passes))
        if "dense" in wants or ("dense.bf16" in wants and PACKED in program.features):
            return program.clone()
        return copied(program, torch.bfloat16) if "dense.bf16" in wants else None


def parse(text: str) -> Pipeline:
    """The pipeline of a text; PipelineError or OptionError say what cannot be read and where."""
    return Pipeline(parse_passes(text))


@dataclass
class _Step:
    """One pass on one program, with the checks around it."""

    program: Program
    item: Pass
    context: Context
    where: str

    def run(self, before: Sequence[Tensor], compare: bool) -> tuple[Row, tuple[Tensor, ...]]:
        text, versions = to_text(self.program), _versions(self.program)
        rounds = compare and self.item.limits().graph and rounds_inputs(self.program)
        unrounded = unrounded_outputs(self.program, self.program.sample) if rounds else None
        started = time.perf_counter()
        context = replace(self.context, notes=[])
        context.progress.start(self.item.name, None)
        try:
            places = self.item.rewrite(self.program, context)
        except SparsifyError as error:
            raise type(error)(f"{self.where}: {error}") from error
        seconds = time.perf_counter() - started
        self.program.features = self.item.effect().after(self.program.features)
        self.program.module.recompile()
        started = time.perf_counter()
        context.progress.start("checking", None)
        verify(self.program)
        after = self.program.run() if compare else tuple(before)
        move = largest_difference(before, after)
        self._check_laws(text, versions, places, _Outputs(before, after, move, unrounded))
        self.program.log.append(str(self.item))
        row = Row(
            name=self.item.name,
            text=str(self.item),
            places=places,
            nodes=len(self.program.graph.nodes),
            parameters=count_parameters(self.program),
            zeros=count_zeros(self.program),
            seconds=seconds,
            checking=time.perf_counter() - started,
            move=move,
            note="; ".join(context.notes),
        )
        return row, after

    def _check_laws(
        self,
        text: str,
        versions: object,
        places: int,
        outputs: "_Outputs",
    ) -> None:
        same_text = to_text(self.program) == text
        moves = self.item.limits()
        if moves.graph:
            self._check_outputs(outputs, moves.allowed(outputs.after[0].dtype))
        elif not same_text:
            raise LawError(
                f"after {self.where}: the text of the graph changed, though the pass may "
                "only change values"
            )
        if not all(bool(torch.isfinite(o).all()) for o in outputs.after):
            raise LawError(f"after {self.where}: an output is not finite on the sample inputs")
        if places == 0 and not (same_text and _versions(self.program) == versions):
            raise LawError(f"after {self.where}: the pass says it changed nothing, but it did")

    def _check_outputs(self, outputs: "_Outputs", allowed: float) -> None:
        """What a structural pass may move, by rounding alone where the outputs have moved further."""
        program, sample = self.program, self.program.sample
        if outputs.move <= allowed:
            return
        why = f"outputs moved by {outputs.move:.2e} (allowed {allowed:.1e})"
        before, after = outputs.before, outputs.after
        if outputs.unrounded is not None:
            strange = strange_rounding(program, sample, after, before)
            before, after = outputs.unrounded, unrounded_outputs(program, sample)
            why, allowed = strange or why, 0.0 if strange else allowed
        if not allowed or not (
            largest_difference(before, after) <= allowed
            or is_rounding(program, sample, after, before)
        ):
            raise LawError(
                f"after {self.where}: {why} on the sample inputs, though the pass may only change the graph"
            )


@dataclass(frozen=True)
class _Outputs:
    """Outputs on the sample before and after a pass, and how far they have moved.

    `unrounded` are those before without rounded inputs, None where nothing rounds.
    """

    before: Sequence[Tensor]
    after: Sequence[Tensor]
    move: float
    unrounded: Sequence[Tensor] | None


def _versions(program: Program) -> dict[str, tuple[int, int]]:
    """Identity and edit count of every tensor: equal means untouched, without reading a value."""
    return {path: (value.data_ptr(), value._version) for path, value in program.tensors()}
