"""Training: what learns, what does not, and that a killed run goes on bitwise."""

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from sparsify.data.sequences import TensorData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import SparsifyError
from sparsify.ir.views.linear import linears
from sparsify.train.losses import TaskLoss
from sparsify.train.program_model import ProgramModel


def run(program, pipeline, data, seed=0):
    context = Context(data=data, seed=seed)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


def snapshot(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


def moved(program, before):
    return {path for path, value in program.tensors() if not torch.equal(value, before[path])}


def test_the_loss_falls_and_every_step_has_a_row(traced, text):
    _, rows = run(traced("llama"), "train{steps=30 batch=8 lr=0.01}", text)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert sum(row["loss"] for row in rows[-5:]) < 0.5 * sum(row["loss"] for row in rows[:5])
    assert rows[0]["lr"] < rows[1]["lr"] == pytest.approx(0.01, rel=1e-2)
    assert rows[-1]["lr"] < 1e-4


def test_an_encoder_learns_to_classify(traced):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (24, 8), generator=generator)
    labels = ids[:, 0] % 3
    data = TensorData({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    _, rows = run(traced("bert"), "train{steps=40 batch=24 lr=0.003}", data)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


@pytest.mark.parametrize(
    ("update", "learns"),
    [
        ("lora", lambda path, dims: "_lora_" in path),
        ("norms", lambda path, dims: "_lora_" in path or dims == 1),
        ("all", lambda path, dims: True),
    ],
)
def test_only_what_is_named_learns(update, learns, traced, tokens):
    program, _ = run(traced("block"), "insert-lora{rank=2}", tokens)
    flags = {path: value.requires_grad for path, value in program.module.named_parameters()}
    before = snapshot(program)
    run(program, f"train{{steps=3 batch=4 update={update}}}", tokens)
    wanted = {path for path, value in program.tensors() if learns(path, value.dim())}
    assert moved(program, before) == wanted
    named = dict(program.module.named_parameters())
    assert {path: value.requires_grad for path, value in named.items()} == flags
    assert all(value.grad is None for value in named.values())


def test_distillation_from_the_dense_twin_is_zero_at_the_start(traced, text):
    pipeline = "train{steps=2 batch=4 task=0.0 distill=DISTILL}"
    for distill in ("kl{temperature=2.0}", "squared"):
        _, rows = run(traced("llama"), pipeline.replace("DISTILL", distill), text)
        assert rows[0]["distill"] == pytest.approx(0, abs=1e-6)
        assert "task" not in rows[0]


def test_the_dense_twin_is_the_program_before_the_first_pass(traced, text):
    pipeline = (
        "insert-masks | choose-masks{sparsity=0.7} | "
        "train{steps=25 batch=8 lr=0.01 task=0.0 distill=kl{weight=3.0}}"
    )
    _, rows = run(traced("llama"), pipeline, text)
    assert rows[0]["distill"] > 0.05
    assert rows[-1]["distill"] < 0.6 * rows[0]["distill"]


def test_task_and_distillation_add_up(traced, tokens):
    step = "train{steps=1 batch=4 task=0.5 distill=squared{weight=2.0}}"
    program = traced("block")
    run(program, "insert-masks", tokens)
    _, (row,) = run(program, step, tokens)
    assert row["loss"] == pytest.approx(0.5 * row["task"] + row["distill"], rel=1e-5)


@pytest.mark.parametrize("decay", ["", " weight_decay=0.1"])
def test_masked_weights_get_no_gradient_at_all(decay, traced, tokens):
    program, _ = run(traced("block"), "insert-masks | choose-masks{pattern=2:4}", tokens)
    views = [view for view in linears(program) if view.mask]
    before = snapshot(program)
    model = ProgramModel(program).train()
    model(**tokens.batch([0, 1]))["loss"].backward()
    for view in views:
        gradient = program.tensor(view.weight).grad
        mask = program.tensor(view.mask)
        assert bool((gradient[~mask] == 0).all())
        assert bool(gradient[mask].any())
    model.zero_grad()
    run(program, f"train{{steps=4 batch=4{decay}}}", tokens)
    for view in views:
        new, old, mask = program.tensor(view.weight), before[view.weight], program.tensor(view.mask)
        assert torch.equal(mask, before[view.mask])
        assert not torch.equal(new, old)
        if not decay:
            assert torch.equal(new[~mask], old[~mask])


def test_a_loss_that_is_not_finite_stops_the_run(traced, tokens):
    with pytest.raises(SparsifyError) as caught:
        run(traced("block"), "train{steps=9 lr=1e30 clip=0.0}", tokens)
    assert str(caught.value) == (
        "pass 1 of 1, 'train{steps=9 lr=1e+30 clip=0.0}': the loss became nan at step 2 of 9; lower lr "
        "(now 1e+30); checkpoints from before stay"
    )


def test_the_wrapped_program_is_the_model(build, traced, text):
    model, wrapped = build("llama"), ProgramModel(traced("llama")).eval()
    batch = text.batch([0, 1])
    one, two = model(**batch), wrapped(**batch)
    assert type(one) is type(two)
    assert torch.allclose(one.loss, two.loss, atol=1e-5)
    assert torch.allclose(one.logits, two.logits, atol=1e-4)
    assert not wrapped.training


def test_the_task_loss_leaves_padding_out(traced, text):
    program = traced("llama")
    loss_of, batch = TaskLoss(program), text.batch([0])
    padded = {key: torch.nn.functional.pad(value, (0, 4)) for key, value in batch.items()}
    wanted = loss_of(program.run(batch), batch)
    assert torch.allclose(loss_of(program.run(padded), padded), wanted, atol=1e-5)


SCRIPT = """
import sys, time
import torch
from torch import nn
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.trace.trace import trace
from sparsify.data.sequences import TextData

TEXT = (
    "insert-masks | choose-masks{pattern=2:4} | "
    "train{steps=24 batch=4 save_every=3 distill=kl OPTIONS} | fold-masks"
)

# Sums over tokens are split by threads: bitwise equality needs their number to be the same.
torch.set_num_threads(1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 11)
        self.drop = nn.Dropout(0.2)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(x + self.drop(self.down(self.up(self.norm(x)).relu())))

class Slow:
    def __init__(self, seconds):
        self.seconds = seconds
    def start(self, title, total):
        pass
    def advance(self, **figures):
        time.sleep(self.seconds)

def go(folder, seconds=0.0):
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(2, 6) % 11
    program = trace(Net(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})
    data = TextData(torch.randint(0, 11, (240,), generator=torch.Generator().manual_seed(1)), 6)
    context = Context(data=data, seed=5, progress=Slow(seconds))
    return parse(TEXT).run(program, context, resume=folder), context.figures["train"]

if __name__ == "__main__":
    from pathlib import Path
    go(Path(sys.argv[1]), seconds=0.25)
"""


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "options",
    ["", "masks=every{steps=2} decay=ars-ste{peak=0.1}", "masks=every decay=adams{reach=0.0}"],
)
def test_a_run_killed_in_training_goes_on_bitwise(options, tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "state"
    script.write_text(textwrap.dedent(SCRIPT).replace("OPTIONS", options))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: any(folder.glob("pass-03/step-*/progress.json")), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "after-03").exists()

    go = runpy.run_path(str(script))["go"]
    resumed, rows = go(folder)
    whole, wanted = go(None)
    for key in ("step", "loss", "lr"):
        assert [row[key] for row in rows] == [row[key] for row in wanted], key
    one, two = dict(resumed.tensors()), dict(whole.tensors())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[path], two[path]) for path in one)
    assert resumed.log == whole.log
