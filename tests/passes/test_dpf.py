"""DPF: the gradient at the masked weights moves all weights, and the masks follow, until they freeze."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sparsify.data.sequences import TensorData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears
from sparsify.train.checkpoint import latest
from sparsify.train.losses import TaskLoss
from sparsify.train.steps import step_indices

PLAIN = "lr=0.1 optimizer=sgd momentum=0.0 schedule=constant warmup=0.0 clip=0.0"
DYNAMIC = (
    "insert-masks | train{{steps=40 batch=8 lr=0.01 "
    "masks=every{{steps=4 sparsity=0.8 schedule=cubic {}}}}}"
)


def run(program, pipeline, data, **options):
    context = Context(data=data, seed=0, **options)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


def masked(program):
    return [view for view in linears(program) if view.mask is not None]


def tensors(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


@pytest.fixture
def valley():
    """`0.5 |w - (0, 1)|^2` at w = (1, 0.9): the squared error of a linear on the unit vectors."""

    def make(w=(1.0, 0.9)):
        model = nn.Sequential()
        model.add_module("fc", nn.Linear(2, 1, bias=False))
        with torch.no_grad():
            model.fc.weight.copy_(torch.tensor([w]))
        # Called by the name of its first argument.
        return trace(model, {"input": torch.randn(3, 2)}, {"input": {0: "batch"}})

    return make, TensorData({"input": torch.eye(2), "labels": torch.tensor([0.0, 1.0])})


def on_valley(valley, options, masks="every{steps=1 sparsity=0.5}"):
    make, data = valley
    text = f"train{{batch=2 {PLAIN} {options}"
    if masks is not None:
        text = f"insert-masks{{targets=fc}} | {text} masks={masks}"
    program, rows = run(make(), f"{text}}}", data)
    mask = program.tensor("fc.weight_mask")[0].tolist() if masks else None
    return program.tensor("fc.weight").detach()[0], mask, rows


class TestHandExample:
    """D1: two weights, half of them masked."""

    def test_one_step_at_the_masked_point(self, valley):
        w, mask, _ = on_valley(valley, "steps=1")
        assert torch.allclose(w, torch.tensor([0.9, 1.0]), atol=1e-7)
        assert mask == [True, False]

    def test_the_second_weight_comes_back_and_the_loss_is_gone(self, valley):
        w, mask, rows = on_valley(valley, "steps=2")
        assert torch.allclose(w, torch.tensor([0.9, 1.0]), atol=1e-7)
        assert mask == [False, True]
        assert rows[0]["loss"] == pytest.approx(1.0)  # at (1, 0)
        assert rows[1]["loss"] == pytest.approx(0.0, abs=1e-12)
        assert rows[1]["reactivated"] == 1
        assert rows[1]["flips"] == 1.0

    def test_without_feedback_it_is_dead(self, valley):
        w, mask, rows = on_valley(valley, "steps=200", "every{steps=1 sparsity=0.5 feedback=false}")
        assert mask == [True, False]
        assert abs(float(w[0])) < 1e-6
        assert float(w[1]) == pytest.approx(0.9)
        assert rows[-1]["loss"] == pytest.approx(0.5)
        assert all(row["reactivated"] == 0 for row in rows if "reactivated" in row)

    def test_the_gradient_at_the_dense_weights_goes_elsewhere(self, valley):
        w, _, _ = on_valley(valley, "steps=1", None)
        assert torch.allclose(w, torch.tensor([0.9, 0.91]), atol=1e-7)

    def test_momentum_is_that_of_the_dense_weights(self, valley):
        # The buffer of the first step, (1, -1), goes on: 0.9 (1, -1) at the second, where the gradient is 0.
        make, data = valley
        text = f"train{{steps=2 batch=2 {PLAIN} masks=every{{steps=1 sparsity=0.5}}}}"
        text = f"insert-masks{{targets=fc}} | {text.replace('momentum=0.0', 'momentum=0.9')}"
        program, _ = run(make(), text, data)
        assert torch.allclose(program.tensor("fc.weight"), torch.tensor([[0.81, 1.09]]), atol=1e-6)

    def test_weight_decay_is_that_of_the_dense_weights(self, valley):
        w, _, _ = on_valley(valley, "steps=1 weight_decay=0.1")
        assert torch.allclose(w, torch.tensor([0.89, 0.991]), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_sparsity_is_training_without_masks_bit_for_bit(optimizer, traced, tokens):
    """D2."""
    how = f"train{{steps=6 batch=8 weight_decay=0.1 optimizer={optimizer}"
    plain, wanted = run(traced("block"), f"{how}}}", tokens)
    text = f"insert-masks | {how} masks=every{{steps=2 sparsity=0.0 schedule=cubic}}}}"
    program, rows = run(traced("block"), text, tokens)
    assert [row["loss"] for row in rows] == [row["loss"] for row in wanted]
    ours = tensors(program)
    for path, value in tensors(plain).items():
        assert torch.equal(ours[path], value), path


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def loss_of(one, two, x, labels):
    """The loss of `Two` in double precision, written out."""
    return float(((torch.tanh(x @ one.T) @ two.T)[:, 0] - labels).square().mean())


def differences(one, two, x, labels, eps=1e-5):
    found = torch.zeros_like(one)
    for place in range(one.numel()):
        step = torch.zeros(one.numel(), dtype=torch.float64)
        step[place] = eps
        step = step.view_as(one)
        up, down = loss_of(one + step, two, x, labels), loss_of(one - step, two, x, labels)
        found.view(-1)[place] = (up - down) / (2 * eps)
    return found


def test_the_dense_step_is_the_gradient_at_the_masked_weights():
    """D3: by differences, masked entries too; at the dense weights it is another one."""
    torch.manual_seed(1)
    x, labels = torch.randn(5, 4), torch.randn(5)
    program = trace(Two(), {"x": x}, {"x": {0: "batch"}})
    weights = [program.tensor(f"{name}.weight").detach().clone() for name in ("one", "two")]
    how = PLAIN.replace("lr=0.1", "lr=1.0")
    text = f"insert-masks | train{{steps=1 batch=5 {how} masks=every{{steps=1 sparsity=0.5}}}}"
    program, _ = run(program, text, TensorData({"x": x, "labels": labels}))
    moved = (weights[0] - program.tensor("one.weight").detach()).double()
    mask = program.tensor("one.weight_mask")
    given = [value.double() for value in (*weights, x, labels)]
    at_masked = differences(given[0] * mask, *given[1:])
    assert torch.allclose(moved, at_masked, atol=1e-6)
    assert bool((moved[~mask].abs() > 1e-4).all())
    assert float((moved - differences(*given)).abs().max()) > 1e-2


class Watching:
    """A progress that keeps the masks of every step."""

    def __init__(self, program):
        self.program, self.seen = program, []

    def start(self, title, total):
        """Nothing."""

    def rename(self, title):
        """Nothing."""

    def advance(self, **figures):
        """The masks that the step was taken with."""
        masks = {p: v.clone() for p, v in self.program.tensors() if p.endswith(".weight_mask")}
        self.seen.append(masks)


def test_masks_move_at_multiples_by_one_threshold_until_they_freeze(traced, text):
    """D4, D5, D6."""
    program = traced("llama")
    watching = Watching(program)
    _, rows = run(program, DYNAMIC.format("until=0.6"), text, progress=watching)
    steps = watching.seen
    size = sum(mask.numel() for mask in steps[0].values())
    for step, (before, after) in enumerate(pairwise(steps), 1):
        same = all(torch.equal(before[path], after[path]) for path in before)
        assert same == (step % 4 != 0 or step > 24), step
    ends = {0: 0.0, 40: 0.8}
    for step, masks in enumerate(steps):
        at = min(step // 4 * 4, 24)
        wanted = ends.get(at, 0.8 - 0.8 * (1 - at / 24) ** 3)
        zeros = size - sum(int(mask.sum()) for mask in masks.values())
        assert abs(zeros - math.floor(size * wanted)) <= 1, step
    assert size - sum(int(m.sum()) for m in steps[-1].values()) == math.floor(size * 0.8 + 1e-9)
    ratios = [float(mask.float().mean()) for mask in steps[-1].values()]
    assert max(ratios) - min(ratios) > 0.05
    back = {row["step"] - 1: row["reactivated"] for row in rows[:-1] if "reactivated" in row}
    assert sorted(back) == list(range(4, 40, 4))
    assert sum(back[step] for step in back if step <= 24) > 0
    assert [back[step] for step in back if step > 24] == [0, 0, 0]
    shares = [row["above"] for row in rows if "above" in row]
    assert len(shares) == 9
    assert all(0 < share <= 1 for share in shares)
    assert rows[-1]["revived"] == 0  # the first masks keep all


def test_without_feedback_nothing_ever_comes_back(traced, text):
    program = traced("llama")
    watching = Watching(program)
    _, rows = run(program, DYNAMIC.format("feedback=false"), text, progress=watching)
    assert {row["reactivated"] for row in rows if "reactivated" in row} == {0}
    for before, after in pairwise(watching.seen):
        assert not any(bool((after[path] & ~before[path]).any()) for path in before)
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=1e-4)


def test_a_ramp_starts_at_what_masks_leave_out(traced, text):
    chosen = "insert-masks | choose-masks{sparsity=0.4} | train{steps=12 batch=4 masks=every{"
    _, rows = run(traced("llama"), f"{chosen}steps=4 sparsity=0.6 schedule=cubic}}}}", text)
    wanted = [0.6 - 0.2 * (1 - 4 / 8) ** 3, 0.6]
    found = [row["sparsity"] for row in rows if "sparsity" in row]
    assert found == pytest.approx([*wanted, 0.6], abs=1e-3)
    with pytest.raises(
        OptionError, match=r"masks leave out 0\.3999 already, and with feedback=false"
    ):
        run(traced("llama"), f"{chosen}steps=4 sparsity=0.3 feedback=false}}}}", text)


def test_what_is_shipped_is_the_masked_model(traced, text):
    """D7: exactly the mask's zeros, and the loss of the masked and of the dense weights, each by its name."""
    program, rows = run(traced("llama"), DYNAMIC.format(""), text)
    loss, batch = TaskLoss(program), text.batch(step_indices(60, 0, 39, 8))  # the last one
    views = masked(program)
    kept = {v.weight: program.tensor(v.weight).detach() * program.tensor(v.mask) for v in views}
    masks = {view.weight: program.tensor(view.mask).clone() for view in views}
    dense = program.clone()
    for view in views:
        dense.tensor(view.mask).fill_(True)
    masked_loss, dense_loss = (float(loss(p.run(batch), batch)) for p in (program, dense))
    assert rows[-1]["pruned"] == pytest.approx(masked_loss, rel=1e-4)
    assert rows[-1]["unpruned"] == pytest.approx(dense_loss, rel=1e-4)
    assert abs(rows[-1]["pruned"] - rows[-1]["unpruned"]) > 0.02
    folded, _ = run(program, "fold-masks", text)
    for path, mask in masks.items():
        weight = folded.tensor(path)
        assert torch.equal(weight != 0, mask), path
        assert torch.equal(weight, kept[path]), path
    assert float(loss(folded.run(batch), batch)) == pytest.approx(masked_loss, rel=1e-5)


class Killed(Exception):
    """A kill."""


class Killing(Watching):
    """A progress that ends the run after so many steps of training."""

    def __init__(self, steps):
        self.left = steps

    def start(self, title, total):
        self.training = title == "train"

    def advance(self, **figures):
        self.left -= self.training
        if self.left < 0:
            raise Killed


RESUMED = (
    "insert-masks{{of={0}}} | train{{steps=16 batch=4 lr=0.01 optimizer={1} save_every=3 "
    "masks=every{{steps=2 sparsity=0.7 schedule=cubic until=0.8 of={0}}}}}"
)


@pytest.mark.parametrize(
    ("of", "optimizer"), [("weights", "sgd"), ("weights", "adamw"), ("channels", "adamw")]
)
def test_a_run_goes_on_bitwise_from_the_middle_of_its_ramp(of, optimizer, traced, tokens, tmp_path):
    pipeline = RESUMED.format(of, optimizer)
    with pytest.raises(Killed):
        parse(pipeline).run(
            traced("block"), Context(data=tokens, progress=Killing(8)), resume=tmp_path
        )
    assert latest(tmp_path / "pass-02").name == "step-00000006"
    context = Context(data=tokens)
    resumed = parse(pipeline).run(traced("block"), context, resume=tmp_path)
    wanted, rows = run(traced("block"), pipeline, tokens)
    ours = tensors(resumed)
    for path, value in tensors(wanted).items():
        assert torch.equal(ours[path], value), path
    for key in ("loss", "sparsity", "reactivated", "above", "pruned"):
        found = [row.get(key) for row in context.figures["train"]]
        assert found == [row.get(key) for row in rows], key


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("masks=every{sparsity=1.0}", "sparsity 1.0 is not in [0, 1)"),
        ("masks=every{sparsity=0.5 pattern=2:4}", "choose either a sparsity, as in sparsity=0.5"),
        ("masks=every{schedule=cubic}", "a pattern is for weights, and the same from first to last"),
        ("masks=every{sparsity=0.5 until=1.5}", "until=1.5 is a fraction of the steps, from 0 to 1"),
        (
            "masks=every{sparsity=0.5 schedule=cubic}",
            "masks=every{steps=10 until=1.0} chooses no mask in 4 steps, and sparsity=0.5 is never reached",
        ),
        ("masks=every{sparsity=0.5 of=weights,weights}", "of=weights,weights names one kind twice"),
        ("masks=every{sparsity=0.5 of=weights,channels}", "of=weights,channels mixes single weights"),
        ("masks=every{sparsity=0.5 feedback=false} decay=sr-ste", "leave feedback=false out"),
        ("masks=every optimizer=sgd decay=sr-ste", "decay=sr-ste is a part of AdamW's step"),
        ("optimizer=sgd momentum=1.0", "momentum=1.0 is not in [0, 1)"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options, sentence, traced, tokens):
    inserted = "insert-masks{of=weights,channels}"
    with pytest.raises(SparsifyError) as caught:
        run(traced("block"), f"{inserted} | train{{steps=4 {options}}}", tokens)
    assert sentence in str(caught.value)
