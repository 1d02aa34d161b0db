import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from sparsify.data.sequences import TextData
from sparsify.engine.contract import FUNCTION, NOTHING, ROUNDING, Context, Pass, effect
from sparsify.engine.pipeline import Pipeline, parse
from sparsify.engine.report import Report
from sparsify.errors import DataError, LawError, PipelineError, SparsifyError, VerifyError
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears


@dataclass(frozen=True)
class Lie(Pass):
    """Says it keeps a law, and does something else."""

    name: ClassVar[str] = "lie"
    moves: ClassVar = NOTHING
    action: object = field(default=None, compare=False)
    honest: bool = True

    def __str__(self):
        return "lie"

    def effect(self):
        return effect()

    def rewrite(self, program, context):
        self.action(program)
        return int(self.honest)


class Learner(Lie):
    """The same, as a learning pass."""

    moves: ClassVar = FUNCTION


class Rounder(Lie):
    """The same, as a folding pass."""

    moves: ClassVar = ROUNDING


def scale(by):
    def action(program):
        with torch.no_grad():
            program.tensor("up.weight").mul_(by)

    return action


def add_nothing(program):
    """A new node that moves no output."""
    view = next(v for v in linears(program) if v.weight == "down.weight")
    node = Writer(program, after=view.node).call(torch.ops.aten.mul.Tensor, view.node, 1.0)
    redirect(view.node, node)


def leave_a_tensor(program):
    program.put("up.extra", torch.ones(2), trainable=True)


def nothing(program):
    pass


def failure(item, program, kind=LawError):
    with pytest.raises(kind) as caught:
        Pipeline([item]).run(program)
    return str(caught.value)


def test_a_structural_pass_that_moves_outputs(traced):
    sentence = failure(Lie(scale(1.5)), traced("mlp"))
    assert sentence.startswith("after pass 1 of 1, 'lie': outputs moved by ")
    assert sentence.endswith(
        " (allowed 0.0e+00) on the sample inputs, though the pass may only change the graph"
    )


def test_rounding_is_allowed_up_to_the_stated_tolerance(traced):
    Pipeline([Rounder(scale(1 + 1e-6))]).run(traced("mlp"))
    assert "(allowed 1.0e-05)" in failure(Rounder(scale(1.01)), traced("mlp"))
    assert "(allowed 0.0e+00)" in failure(Lie(scale(1 + 1e-6)), traced("mlp"))


def test_a_learning_pass_that_changes_the_graph(traced):
    assert failure(Learner(add_nothing), traced("mlp")) == (
        "after pass 1 of 1, 'lie': the text of the graph changed, though the pass may only change values"
    )
    Pipeline([Lie(add_nothing)]).run(traced("mlp"))
    Pipeline([Learner(scale(3.0))]).run(traced("mlp"))


@pytest.mark.parametrize(("kind", "action"), [(Lie, add_nothing), (Learner, scale(2.0))])
def test_a_pass_that_says_nothing_changed_and_lies(kind, action, traced):
    assert failure(kind(action, False), traced("mlp")) == (
        "after pass 1 of 1, 'lie': the pass says it changed nothing, but it did"
    )
    Pipeline([kind(nothing, False)]).run(traced("mlp"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite(value, traced):
    assert failure(Learner(scale(value)), traced("mlp")) == (
        "after pass 1 of 1, 'lie': an output is not finite on the sample inputs"
    )


def test_a_program_that_does_not_verify(traced):
    assert "@up.extra is not read by the graph" in failure(
        Lie(leave_a_tensor), traced("mlp"), VerifyError
    )


def test_what_a_pass_raises_says_which_pass(traced):
    def refuse(program):
        raise DataError("no")

    pipeline = Pipeline([Lie(nothing), Lie(refuse)])
    with pytest.raises(DataError) as caught:
        pipeline.run(traced("mlp"))
    assert str(caught.value) == "pass 2 of 2, 'lie': no"


def test_features_are_followed_ahead(traced):
    ran = []
    pipeline = Pipeline([Lie(ran.append), *parse("insert-masks | fold-masks | fold-masks").passes])
    with pytest.raises(PipelineError) as caught:
        pipeline.run(traced("mlp"))
    assert ran == []
    assert str(caught.value) == (
        "pass 4 of 4, 'fold-masks', needs ['mask.weights'], but at that point the program has []"
    )


def test_the_report_has_a_true_row_for_every_pass(traced):
    report, program = Report(), traced("mlp")
    parse("insert-masks | choose-masks{sparsity=0.5} | insert-lora{rank=2} | fold-lora").run(
        program, report=report
    )
    rows = report.rows
    assert [row.text for row in rows] == program.log
    assert [row.places for row in rows] == [2, 2, 2, 2]
    assert [row.zeros for row in rows] == [0, 96, 96, 96]
    dense = sum(p.numel() for p in traced("mlp").module.parameters())
    assert [row.parameters for row in rows] == [dense, dense, dense + 2 * 2 * (8 + 12), dense]
    assert rows[0].nodes == len(traced("mlp").graph.nodes) + 4
    assert rows[0].move == rows[2].move == 0.0
    assert rows[1].move > 0.01
    assert all(row.seconds >= 0 for row in rows)
    assert len(report.table().rows) == 4


def test_notes_of_a_pass_stand_in_its_row_and_outlive_an_interruption(traced, tmp_path):
    sparse = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
    report, again = Report(), Report()
    parse(sparse).run(traced("mlp"), report=report, resume=tmp_path)
    assert [bool(row.note) for row in report.rows] == [False, False, False, True]
    parse(sparse).run(traced("mlp"), report=again, resume=tmp_path)
    assert again.to_json() == report.to_json()


def test_dump_writes_a_text_and_a_difference_for_every_step(traced, tmp_path):
    folder = tmp_path / "dump"
    program = parse("insert-masks | choose-masks{sparsity=0.5}").run(traced("mlp"), dump=folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "00-trace.txt", "01-insert-masks.diff", "01-insert-masks.txt",
        "02-choose-masks.diff", "02-choose-masks.txt",
    ]  # fmt: skip
    assert (folder / "00-trace.txt").read_text() == (
        "program Mlp features {}\n" + to_text(traced("mlp"))
    )
    assert (folder / "02-choose-masks.txt").read_text().endswith(to_text(program))
    assert (
        "+  %2 : f32[12,8] = mul.Tensor(@up.weight" in (folder / "01-insert-masks.diff").read_text()
    )
    assert (folder / "02-choose-masks.diff").read_text() == "\n"
    with pytest.raises(DataError, match="is not empty"):
        parse("insert-masks").run(traced("mlp"), dump=folder)


LONG = (
    "insert-probes | calibrate{samples=8} | insert-masks | choose-masks{score=wanda sparsity=0.5} | "
    "remove-probes | insert-lora{rank=2} | train{steps=6 batch=4 save_every=2 distill=kl} | "
    "fold-lora | fold-masks"
)


class Interrupted(Exception):
    """Stands for a lost machine."""


class Breaking:
    """A progress that breaks off at the n-th step of a pass."""

    def __init__(self, name, step):
        self.name, self.step, self.at = name, step, None

    def start(self, title, total):
        self.at = 0 if title == self.name else None

    def advance(self, **figures):
        if self.at is not None:
            self.at += 1
            if self.at == self.step:
                raise Interrupted


@pytest.mark.parametrize(("name", "step"), [("calibrate", 1), ("train", 1), ("train", 5)])
def test_a_broken_run_goes_on_bitwise(name, step, traced, tokens, tmp_path):
    pipeline, folder = parse(LONG), tmp_path / "state"
    whole = Context(data=tokens, seed=2)
    wanted = pipeline.run(traced("block"), whole)
    with pytest.raises(Interrupted):
        pipeline.run(
            traced("block"),
            Context(data=tokens, seed=2, progress=Breaking(name, step)),
            resume=folder,
        )
    again, report = Context(data=tokens, seed=2), Report()
    found = pipeline.run(traced("block"), again, resume=folder, report=report)
    assert to_text(found) == to_text(wanted)
    one, two = dict(found.tensors()), dict(wanted.tensors())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[path], two[path]) for path in one)
    assert found.log == wanted.log == [row.text for row in report.rows]
    losses = [[row["loss"] for row in c.figures["train"]] for c in (again, whole)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_run_again(traced, tokens, tmp_path):
    pipeline, folder = parse("insert-masks | choose-masks{sparsity=0.5}"), tmp_path / "state"
    first = pipeline.run(traced("block"), resume=folder)
    second = pipeline.run(traced("block"), resume=folder)
    assert second.log == first.log
    assert all(torch.equal(a, b) for a, b in zip(first.run(), second.run(), strict=True))


@pytest.mark.parametrize(
    ("text", "seed", "action", "cut", "sentence"),
    [
        ("insert-masks", 1, None, 480, "seed was '0' and is '1'"),
        ("insert-probes", 0, None, 480, "pipeline was 'insert-masks' and is 'insert-probes'"),
        ("insert-masks", 0, scale(1.5), 480, "other weights"),
        ("insert-masks", 0, None, 300, "other data"),
        ("insert-masks", 2, scale(1.5), 479, "seed was '0' and is '2', other weights, other data"),
    ],
)
def test_the_state_of_another_run_is_refused(text, seed, action, cut, sentence, traced, tmp_path):
    ids = torch.arange(480) % 11
    context = Context(data=TextData(ids, 12))
    parse("insert-masks").run(traced("block"), context, resume=tmp_path / "state")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    program = traced("block")
    if action is not None:
        action(program)
    other = Context(data=TextData(ids[:cut], 12), seed=seed)
    with pytest.raises(SparsifyError) as caught:
        parse(text).run(program, other, resume=tmp_path / "state")
    assert str(caught.value) == (
        f"'{tmp_path / 'state'}' keeps the state of another run: {sentence}; give the same, or remove "
        "it, or choose another folder"
    )
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_other_versions_and_states_without_a_name_are_refused(traced, tmp_path, monkeypatch):
    run = lambda: parse("insert-masks").run(traced("block"), resume=tmp_path)  # noqa: E731
    run()
    sentence = re.escape(f"torch was '{torch.__version__}' and is '1.0'")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(PipelineError, match=sentence):
            run()
    (tmp_path / "identity.json").unlink()
    with pytest.raises(PipelineError, match="keeps the state of an older version"):
        run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_rounds_may_move_outputs_by_two_steps_of_their_numbers(dtype):
    allowed = ROUNDING.allowed(dtype)
    assert allowed >= 2 * torch.finfo(dtype).eps
    assert allowed <= max(1e-5, 2 * torch.finfo(dtype).eps)
    assert NOTHING.allowed(dtype) == 0
