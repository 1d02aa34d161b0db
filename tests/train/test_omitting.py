"""Choices of a step: shared by all that belongs to it, fresh in the next, and what they cover."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.mode import set_training
from sparsify.ir.text import to_text
from sparsify.train.callback import OmissionCallback
from sparsify.train.omitting import Omitting
from sparsify.train.options import Lors
from sparsify.train.program_model import ProgramModel


@pytest.fixture
def start(traced):
    """A program that omits, in training, and its choices."""

    def make(options, name="llama", seed=0):
        program = parse(f"insert-omission{{{options}}}").run(traced(name), Context())
        set_training(program.module, True)
        return program, Omitting(program, seed=seed)

    return make


def copied(kept):
    return {path: index.tolist() for path, index in kept.items()}


def forward(program, data, index):
    return program.module(**program.complete(data.batch([index, index + 1])))[0]


@pytest.mark.parametrize("select", ["topk", "sampling"])
def test_micro_batches_share_the_choice_of_their_step(select, start, text):
    program, omitting = start(f"metric=maxip select={select} multiple=1")
    with torch.no_grad(), omitting.training():
        omitting.begin(0, 0.5)
        forward(program, text, 0)
        first = copied(omitting.kept())
        forward(program, text, 10)
        assert copied(omitting.kept()) == first
        omitting.begin(1, 0.5)
        forward(program, text, 10)
        second = copied(omitting.kept())
        omitting.begin(0, 0.5)
        forward(program, text, 0)
        assert copied(omitting.kept()) == first
    assert second != first


def test_accumulated_gradients_are_the_sum_of_those_of_one_choice(start, text):
    program, omitting = start("select=sampling multiple=1")
    found = []
    with omitting.training():
        for batches in ([0, 10], [0], [10]):
            omitting.begin(0, 0.5)
            with torch.no_grad():
                forward(program, text, 0)
            for index in batches:
                forward(program, text, index).square().mean().backward()
            found.append({p: v.grad.clone() for p, v in program.module.named_parameters()})
            for value in program.module.parameters():
                value.grad = None
    for path, total in found[0].items():
        assert torch.allclose(total, found[1][path] + found[2][path], atol=1e-5), path


def test_recomputed_activations_use_the_choice_of_the_step(start, text):
    program, omitting = start("metric=uniform select=sampling multiple=1")
    ids = text.batch([0, 1])["input_ids"]
    model, found = ProgramModel(program), []
    model.train()

    def loss_of(tokens):
        return model(input_ids=tokens, labels=tokens).loss

    with omitting.training():
        for again in (False, True):
            omitting.begin(5, 0.5)
            loss = checkpoint(loss_of, ids, use_reentrant=False) if again else loss_of(ids)
            loss.backward()
            found.append({p: v.grad.clone() for p, v in program.module.named_parameters()})
            for value in program.module.parameters():
                value.grad = None
    assert all(torch.equal(gradient, found[1][path]) for path, gradient in found[0].items())


def figures(program, omitting, data, steps):
    rows = []
    with torch.no_grad(), omitting.training():
        for step in range(steps):
            omitting.begin(step, 0.5)
            forward(program, data, step)
            rows.append(omitting.figures())
    return rows


def test_uniform_sampling_covers_and_overlaps_as_chance_has_it(start, text):
    """Half of 96 kept: `E|A and B| = 24`, `J = x / (96 - x)`; missed after n steps: `1 / 2^n`."""
    program, omitting = start("of=channels metric=uniform select=sampling multiple=1")
    rows = figures(program, omitting, text, 40)
    mean = sum(row["jaccard"] for row in rows[1:]) / 39
    assert mean == pytest.approx(1 / 3, abs=0.02)
    for step in range(4):
        assert rows[step]["coverage"] == pytest.approx(1 - 0.5 ** (step + 1), abs=0.08)
    assert rows[-1]["coverage"] == 1.0
    assert {row["omission"] for row in rows} == {0.5}


def test_what_scores_depend_on_decides_whether_the_choice_moves(start, text):
    found = {}
    for metric in ("magnitude", "wanda", "maxip"):
        rows = figures(*start(f"of=channels metric={metric} multiple=1"), text, 12)
        found[metric] = [row["jaccard"] for row in rows[1:]]
        assert rows[-1]["coverage"] < 1
    assert set(found["magnitude"]) == {1.0}
    assert max(found["maxip"]) < 1
    assert min(found["wanda"]) < 1
    rows = figures(*start("of=channels metric=magnitude select=sampling multiple=1"), text, 12)
    assert max(row["jaccard"] for row in rows[1:]) < 0.7
    assert rows[-1]["coverage"] > 0.99


def test_coverage_forgets_what_is_long_ago(start, text):
    program, omitting = start("of=channels metric=magnitude multiple=1")
    with torch.no_grad(), omitting.training():
        for step, rate in ((0, 0.0), (99, 0.5), (100, 0.5)):
            omitting.begin(step, rate)
            forward(program, text, 0)
            row = omitting.figures()
            assert row["coverage"] == (1.0 if step < 100 else 0.5)


def test_heads_stay_as_many_in_every_group(start, text):
    program, omitting = start("of=heads metric=uniform select=sampling")
    with torch.no_grad(), omitting.training():
        for step in range(6):
            omitting.begin(step, 0.5)
            forward(program, text, step)
            for kept in omitting.kept().values():
                assert [int(index) // 2 for index in kept] == [0, 1]


def test_state_is_told_and_taken_over(start, text):
    program, omitting = start("select=sampling multiple=1")
    figures(program, omitting, text, 3)
    _, other = start("select=sampling multiple=1")
    other.load_state_dict(omitting.state_dict())
    for run in (omitting, other):
        run.begin(3, 0.5)
    assert omitting.figures() == other.figures()


def test_trainer_omits_and_leaves_a_dense_model(start, text, tmp_path):
    program, omitting = start("metric=uniform select=sampling multiple=8")
    before = to_text(program)
    callback = OmissionCallback(omitting, Lors(rate=0.5, hold=0.5, rungs=2).omission)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=2,
        label_names=["labels"],
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{k: v[0] for k, v in text.batch([i]).items()} for i in range(len(text))]
    trainer = Trainer(
        model=ProgramModel(program),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=[callback],
    )
    trainer.train()
    assert to_text(program) == before
    assert [round(row["omission"], 3) for row in callback.rows[:5]] == [0.5] * 5
    assert callback.rows[-1]["omission"] == 0.0
    assert callback.rows[-1]["coverage"] == 1.0
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[-1] < losses[0]
    # What Trainer measured is the dense model's.
    loss = ProgramModel(parse("remove-omission").run(program)).eval()
    whole = text.batch(list(range(8)))
    assert float(loss(**whole).loss.detach()) == pytest.approx(losses[-1], abs=1e-4)
