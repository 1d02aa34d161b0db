"""The constraint of learned masks on bare units: it holds, it needs its sign, it spares what is useful."""

import pytest
import torch

from sparsify.train.learned_masks import Family, LearnedMasks
from sparsify.train.schedules import factor

UNITS, STEPS = 64, 3200


def family(*targets):
    return {
        f"row{number}": Family((UNITS,), (round(UNITS * (1 - target)),))
        for number, target in enumerate(targets)
    }


def learn(masks, *, steps=STEPS, ascent=True, warmup=0.1, loss=None):
    """Train as the loop does: the same groups, schedule, clipping and order; the figures of every step."""
    groups = masks.groups()
    groups[-1]["maximize"] = ascent
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    trained = [value for group in groups for value in group["params"]]
    rows = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = masks.lr * factor("cosine", step, steps, warmup, 0.1)
        masks.begin(step, step / steps)
        rows.append(masks.figures())
        total = masks.penalty() if loss is None else masks.penalty() + loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return rows


def last(rows, name):
    return torch.tensor([row[f"{name}_sparsity"] for row in rows[-200:]])


@pytest.fixture(scope="module")
def constrained():
    """One run of 64 units each for the targets 0.25, 0.5, 0.8125 and 0.984, which is out of reach."""
    return learn(LearnedMasks(family(0.25, 0.5, 0.8125, 0.984), lambda rows: None))


@pytest.mark.parametrize(("name", "target"), [("row0", 0.25), ("row1", 0.5), ("row2", 0.8125)])
def test_the_constraint_holds(name, target, constrained):
    found = last(constrained, name)
    assert float(found.mean()) == pytest.approx(target, abs=5e-4)
    assert float((found - target).abs().max()) < 0.003


def test_a_target_out_of_reach_ends_at_the_bound(constrained):
    assert float(last(constrained, "row3").mean()) == pytest.approx(0.9529, abs=5e-5)


def test_the_ramp(constrained):
    for name, target in (("row0", 0.25), ("row1", 0.5)):
        found = [constrained[step][f"{name}_target"] for step in (0, 320, 640, 2000)]
        assert found == pytest.approx([0, target / 2, target, target])


@pytest.mark.parametrize(("warmup", "end"), [(0.0, 0.9529), (0.1, 0.0020)])
def test_multipliers_that_descend_lose_the_constraint(warmup, end):
    """Either way to a bound: which one is decided by the first steps, before the target has risen."""
    masks = LearnedMasks(family(0.5), lambda rows: None)
    rows = learn(masks, ascent=False, warmup=warmup, steps=800)
    assert float(last(rows, "row0").mean()) == pytest.approx(end, abs=5e-5)


def test_useful_units_survive():
    """A unit costs its weight where it is left out: 87 % of what goes is of the less useful half."""
    worth, drawn = torch.rand(UNITS, generator=torch.Generator().manual_seed(2)), {}
    masks = LearnedMasks(family(0.5), drawn.update, seed=2)

    def loss():
        masks.place()
        return (worth * (1 - drawn["row0"][0])).sum()

    rows = learn(masks, loss=loss, steps=1600)
    assert float(last(rows, "row0").mean()) == pytest.approx(0.5, abs=0.05)
    gone = masks.settled()["row0"][0] == 0
    assert int(gone.sum()) == UNITS // 2
    useless = worth < worth.median()
    assert float((gone & useless).sum() / gone.sum()) > 0.75


def test_masks_of_a_step_are_the_same_for_all_its_micro_batches():
    drawn = {}
    masks = LearnedMasks(family(0.5, 0.25), drawn.update)
    found = []
    for step in (0, 0, 1):
        masks.begin(step, step / 10)
        masks.place()
        found.append({kind: rows[0].tolist() for kind, rows in drawn.items()})
    assert found[0] == found[1] != found[2]
    assert found[0]["row0"] != found[0]["row1"]


def test_rows_of_a_family_share_their_multipliers_and_have_targets_of_their_own():
    masks = LearnedMasks({"channels": Family((8, 4), (4, 3))}, lambda rows: None, rise=0.0)
    masks.begin(0, 0.0)
    assert masks.figures()["channels_target"] == pytest.approx((0.5 + 0.25) / 2)
    assert [pair.shape for pair in masks.multipliers.values()] == [(2,)]
    masks.penalty().backward()
    (pair,) = masks.multipliers.values()
    off = [0.0020 - 0.5, 0.0020 - 0.25]
    assert pair.grad.tolist() == pytest.approx(
        [sum(off) / 2, sum(x * x for x in off) / 2], abs=1e-4
    )
    assert [(row > 0).sum() for row in masks.settled()["channels"]] == [4, 3]


def test_what_is_stored_is_all_there_is():
    one, two = (LearnedMasks(family(0.5), lambda rows: None, seed=seed) for seed in (0, 1))
    learn(one, steps=5)
    two.load_state_dict(one.state_dict())
    for masks in (one, two):
        masks.begin(5, 0.5)
    assert one.figures() == two.figures()
    assert all(value.requires_grad for rows in two.log_alphas.values() for value in rows)
