"""Options of a step: micro-batches, precision, recomputation, logits in chunks; alone and resumed."""

import contextlib

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sparsify.data.sequences import TensorData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.train import chunks, program_model
from sparsify.train.checkpoint import latest
from sparsify.train.objective import Objective

AST = (
    "insert-masks | choose-masks{pattern=2:4} | train{steps=STEPS batch=4 lr=0.003 "
    "distill=kl{temperature=2.0} masks=every{steps=2} decay=ars-ste{peak=0.01} OPTIONS}"
)


def run(program, pipeline, data, seed=0):
    context = Context(data=data, seed=seed)
    return parse(pipeline).run(program, context), context.figures["train"]


def ragged(vocabulary=300, classes=None):
    """Sequences with between two and twelve tokens, those of a batch far apart in length."""
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(3, vocabulary, (32, 12), generator=draw)
    lengths = torch.where(torch.arange(32)[:, None] % 3 == 0, 12, 2 + torch.arange(32)[:, None] % 4)
    mask = (torch.arange(12) < lengths).long()
    labels = ids.masked_fill(mask == 0, -100) if classes is None else ids[:, 0] % classes
    return TensorData({"input_ids": ids, "attention_mask": mask, "labels": labels})


def far(one, two):
    """The largest difference of two programs' tensors."""
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return max(
        float((a - b).detach().abs().max()) for (_, a), (_, b) in pairs if a.is_floating_point()
    )


def gradients(program, pipeline, data):
    """The gradients of the first step, each of them clipped by nothing, and the rows."""
    found = []

    def keep(optimizer, *given):
        if not found:
            trained = (p for group in optimizer.param_groups for p in group["params"])
            found.extend(p.grad.clone() for p in trained if p.grad is not None)

    handle = register_optimizer_step_pre_hook(keep)
    try:
        _, rows = run(program, pipeline, data)
    finally:
        handle.remove()
    return found, rows


def assert_same_gradients(one, two):
    size = max(float(b.norm()) for b in two)
    for a, b in zip(one, two, strict=True):
        assert float((a - b).norm()) < 1e-5 * float(b.norm()) + 1e-6 * size


@contextlib.contextmanager
def whole_logits():
    """Losses of whole outputs, as programs without a head have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "_in_chunks", lambda self, batch: False)
        yield


@pytest.mark.parametrize(
    ("name", "classes", "losses"),
    [
        ("llama", None, "task=0.4 distill=kl{weight=0.6 temperature=2.0}"),
        ("bert", 3, "task=0.5 distill=kl"),
        ("bert-base", None, "task=0.0 distill=squared"),
    ],
)
def test_micro_batches_are_the_step_of_all_of_them(name, classes, losses, traced, monkeypatch):
    # Dropout draws for a batch as it comes.
    monkeypatch.setattr(program_model, "set_training", lambda module, mode: None)
    masks = "insert-masks | choose-masks{sparsity=0.6}"
    found = []
    for size in ("batch=8", "batch=2 accumulate=4", "batch=1 accumulate=8"):
        pipeline = f"{masks} | train{{steps=1 clip=0.0 {size} {losses}}}"
        found.append(gradients(traced(name), pipeline, ragged(classes=classes)))
    (wanted, (row,)), *others = found
    for same, (other,) in others:
        for key in {"loss", "task", "distill"} & row.keys():
            assert other[key] == pytest.approx(row[key], rel=1e-5), key
        assert_same_gradients(same, wanted)


def test_a_step_of_micro_batches_takes_the_sequences_of_a_batch_as_large(traced, text):
    one, two = (
        run(traced("llama"), f"train{{steps=3 {size} lr=0.00001}}", text)[1]
        for size in ("batch=6", "batch=3 accumulate=2")
    )
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)


def test_a_step_larger_than_the_data_is_refused(traced, text):
    with pytest.raises(OptionError) as caught:
        run(traced("llama"), "train{steps=1 batch=8 accumulate=1000}", text)
    assert "batch=8 accumulate=1000 goes through the 60 sequences" in str(caught.value)


@pytest.mark.parametrize("data", ["text", "ragged"])
def test_logits_in_chunks_are_logits_at_once(data, traced, text, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK", {"cpu": 300 * 7})
    monkeypatch.setattr(chunks, "_BLOCK", {"cpu": 300 * 3})
    pipeline = AST.replace("STEPS", "1").replace("OPTIONS", "clip=0.0")
    given = text if data == "text" else ragged()
    found, (row,) = gradients(traced("llama"), pipeline, given)
    with whole_logits():
        wanted, (expected,) = gradients(traced("llama"), pipeline, given)
    for key in ("loss", "task", "distill"):
        assert row[key] == pytest.approx(expected[key], rel=1e-5), key
    assert_same_gradients(found, wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("recompute", ["layers", "selective"])
def test_recomputing_changes_no_bit(name, recompute, traced):
    data = ragged(classes=3 if name == "bert" else None)
    one, two = (
        run(traced(name), f"train{{steps=2 batch=4 recompute={how}}}", data)[0]
        for how in ("none", recompute)
    )
    assert far(one, two) == 0


def test_omission_is_recomputed_with_the_same_neurons(traced, text):
    pipeline = "insert-omission{multiple=1} | train{steps=3 batch=4 schedule=lors recompute=HOW}"
    one, two = (
        run(traced("llama"), pipeline.replace("HOW", how), text)[0] for how in ("none", "layers")
    )
    assert far(one, two) == 0


@pytest.mark.parametrize("more", ["", " recompute=layers", " recompute=selective accumulate=2"])
def test_bf16_follows_float32(more, traced, text):
    losses = {}
    for precision in ("float32", "bf16"):
        text_of = AST.replace("STEPS", "12").replace("0.003", "0.001")
        pipeline = text_of.replace("OPTIONS", f"precision={precision}{more}")
        program, rows = run(traced("llama"), pipeline, text)
        losses[precision] = [row["loss"] for row in rows]
        assert {t.dtype for t in program.module.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"][-1] < 0.9 * losses["bf16"][0]


@pytest.mark.parametrize("name", ["bert", "routed", "opt", "gemma"])
def test_other_programs_train_in_bf16(name, traced):
    data = ragged(classes=3 if name == "bert" else None)
    pipeline = "train{steps=2 batch=4 distill=kl precision=HOW recompute=layers}"
    rows = [run(traced(name), pipeline.replace("HOW", how), data)[1] for how in ("float32", "bf16")]
    one, two = ([row["loss"] for row in each] for each in rows)
    assert two == pytest.approx(one, rel=0.05)


# What stands beside linears when they are trained, each with a way of its own to the backward pass.
INSERTED = {
    "branches": "insert-lora{rank=4} | train{HOW update=lora}",
    "masked branches": "insert-masks | choose-masks{sparsity=0.5} | insert-lora{rank=4} | "
    "train{HOW update=lora}",
    "rounded branches": "insert-lora{rank=4} | insert-quantizers{values=int8} | choose-scales | "
    "train{HOW update=lora}",
    "scales": "insert-masks | choose-masks{pattern=2:4} | insert-scales | train{HOW}",
    "sums": "insert-masks | choose-masks{pattern=2:4} | insert-slorb{k=16} | choose-slorb | train{HOW}",
    "adapters": "insert-adapters | train{HOW update=adapters}",
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("inserted", INSERTED)
def test_all_that_is_inserted_trains_in_bf16_and_recomputed(inserted, name, traced, text):
    def losses(more):
        how = f"steps=3 batch=4 lr=0.003 {more}"
        return [
            row["loss"]
            for row in run(traced(name), INSERTED[inserted].replace("HOW", how), text)[1]
        ]

    wanted, narrow = losses(""), losses("precision=bf16")
    assert narrow == pytest.approx(wanted, rel=0.01)
    assert narrow != wanted
    for recompute in ("layers", "selective"):
        assert losses(f"recompute={recompute}") == wanted
        assert losses(f"precision=bf16 recompute={recompute}") == narrow


class Killed(Exception):
    """A kill."""


class Killing:
    """A progress that ends the run after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def start(self, title, total):
        """Only training is counted."""
        self.training = title == "train"

    def advance(self, **figures):
        """One step."""
        self.left -= self.training
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize(
    "options",
    [
        "accumulate=2",
        "precision=bf16 recompute=layers accumulate=2",
        "precision=bf16 recompute=selective",
    ],
)
def test_a_run_goes_on_bitwise(options, traced, text, tmp_path):
    pipeline = AST.replace("STEPS", "7").replace("OPTIONS", f"save_every=2 {options}")
    context = Context(data=text, progress=Killing(5))
    with pytest.raises(Killed):
        parse(pipeline).run(traced("llama"), context, resume=tmp_path)
    assert latest(tmp_path / "pass-03").name == "step-00000004"
    context = Context(data=text)
    resumed = parse(pipeline).run(traced("llama"), context, resume=tmp_path)
    wanted, rows = run(traced("llama"), pipeline, text)
    assert far(resumed, wanted) == 0
    for key in ("step", "loss", "lr", "flips"):
        assert [r.get(key) for r in context.figures["train"]] == [r.get(key) for r in rows], key
