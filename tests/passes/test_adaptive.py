"""Masks that move with the weights: AST and CAST on small programs."""

from itertools import pairwise

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import SparsifyError
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears, out_in
from sparsify.tensors.masks import check_nm, keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.program_model import ProgramModel

AST = (
    "insert-masks | choose-masks{{pattern={0}}} | train{{steps={2} batch=8 lr=0.003 distill=kl "
    "masks=every{{steps=5 pattern={0}}} decay={1}}}"
)
CAST = (
    "insert-masks | train{steps=120 batch=8 lr=0.004 masks=every{steps=5} "
    "decay=adams{peak=0.02 reach=0.5}}"
)


def run(program, pipeline, data, seed=0, **options):
    context = Context(data=data, seed=seed)
    return parse(pipeline).run(program, context, **options), context.figures.get("train", [])


def masked(program):
    return [view for view in linears(program) if view.mask is not None]


def stated(program, view):
    """Weight and mask of a linear, `[out, in]`."""
    return out_in(view, program.tensor(view.weight)), out_in(view, program.tensor(view.mask))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "2:8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_result_is_exactly_n_of_m_along_the_inputs(name, pattern, traced, text):
    program, _ = run(traced(name), AST.format(pattern, "ars-ste", 12), text)
    for view in masked(program):
        check_nm(stated(program, view)[1], Pattern.parse(pattern))
    wanted = program.clone()
    views = [view.weight for view in masked(program)]
    transposed = {view.weight: view.transposed for view in masked(program)}
    folded, _ = run(program, "fold-masks", text)
    m = Pattern.parse(pattern).m
    for path in views:
        weight = folded.tensor(path)
        rows = weight.t() if transposed[path] else weight
        kept = (rows.reshape(-1, m) != 0).sum(1)
        assert bool((kept == Pattern.parse(pattern).n).all()), path
    batch = text.batch([0, 1])
    assert torch.allclose(wanted.run(batch)[0], folded.run(batch)[0], atol=1e-5)


def test_the_graph_reads_the_same_afterwards(traced, text):
    program, _ = run(traced("llama"), "insert-masks | choose-masks{pattern=2:4}", text)
    before = to_text(program)
    for decay in ("ars-ste", "adams{reach=0.0}"):
        trained, _ = run(program.clone(), f"train{{steps=3 masks=every decay={decay}}}", text)
        assert to_text(trained) == before


def test_masked_weights_get_the_gradient_of_the_zero_in_their_place(traced, tokens):
    program, _ = run(traced("block"), "insert-masks | choose-masks{pattern=2:4}", tokens)
    batch = tokens.batch([0, 1])
    plain = program.clone()
    for view in masked(plain):  # the effective weight as a weight of its own: dL / dW~
        with torch.no_grad():
            weight, mask = plain.tensor(view.weight), plain.tensor(view.mask)
            weight.mul_(mask)
            mask.fill_(True)
    ProgramModel(plain).train()(**batch)["loss"].backward()
    masks = AdaptiveMasks(program, Refresh(1, Pattern(2, 4)), dense_forward=False)
    with masks.training():
        ProgramModel(program).train()(**batch)["loss"].backward()
    for view in masked(program):
        weight = program.tensor(view.weight)
        assert torch.allclose(weight.grad, plain.tensor(view.weight).grad, atol=1e-6)
        assert bool(weight.grad[~program.tensor(view.mask)].any())


def test_weights_come_back_and_masks_settle(traced, text):
    _, rows = run(traced("llama"), AST.format("2:4", "ars-ste", 40), text)
    flips = [row["flips"] for row in rows[:-1] if "flips" in row]
    assert len(flips) == 7  # before steps 5, 10, ..., 35
    assert flips[0] > 0
    assert flips[-1] < flips[0] / 5
    assert rows[-1]["revived"] > 0
    assert rows[-1]["drift"] > 0
    strengths = [row["strength"] for row in rows]
    assert strengths[0] == 0
    assert strengths[5] == pytest.approx(strengths[10] / 2)
    assert strengths[10] == strengths[-1] == 1e-4


def test_a_strong_pull_freezes_the_masks(traced, text):
    drift = {}
    for decay in ("ars-ste{peak=0.0}", "ars-ste", "ars-ste{peak=100.0 ramp=0.0}"):
        _, rows = run(traced("llama"), AST.format("2:4", decay, 40), text)
        drift[decay] = rows[-1]["drift"]
    free, usual, strong = drift.values()
    assert strong < usual <= free
    assert strong < 0.2 * free


def test_masks_that_keep_everything_are_chosen_first(traced, text):
    _, rows = run(traced("llama"), "insert-masks | train{steps=2 masks=every{steps=9}}", text)
    assert rows[-1]["flips"] == rows[-1]["drift"] == 0


def test_wandas_score_uses_the_norms_measured_before(traced, text):
    pipeline = (
        "insert-probes | calibrate{samples=16} | insert-masks | "
        "train{steps=1 lr=1e-9 masks=every{score=wanda}}"
    )
    trained, _ = run(traced("llama"), pipeline, text)
    wanted, _ = run(
        traced("llama"),
        "insert-probes | calibrate{samples=16} | insert-masks | choose-masks{score=wanda pattern=2:4}",
        text,
    )
    for view in masked(trained):
        assert torch.equal(trained.tensor(view.mask), wanted.tensor(view.mask))


def test_the_forward_of_cast_is_dense_until_its_end(traced, text):
    program, _ = run(traced("llama"), "insert-masks | choose-masks{pattern=2:4}", text)
    batch, view = text.batch([0, 1]), masked(program)[0]
    masks = AdaptiveMasks(program, Refresh(1, Pattern(2, 4)), dense_forward=True)

    def moves():
        before = program.run(batch)[0]
        with torch.no_grad():
            hidden = ~masks.masks[view.weight]
            program.tensor(view.weight)[hidden] += 0.5
            after = program.run(batch)[0]
            program.tensor(view.weight)[hidden] -= 0.5
        return float((after - before).abs().max())

    with masks.training():
        assert moves() > 1e-3
    masks.finish()
    assert moves() < 1e-6


def test_casts_masked_weights_go_to_zero_and_its_prune_is_free(traced, text):
    program, rows = run(traced("llama"), CAST, text)
    figures = [row for row in rows if "masked" in row]
    shrinking = [row["masked"] for row in figures]
    assert all(b < a for a, b in pairwise(shrinking[2:-1]))
    last = rows[-1]
    assert last["masked"] / last["kept"] < 0.01
    assert last["pruned"] == pytest.approx(last["unpruned"], rel=0.005)
    assert rows[0]["strength"] == 0
    for view in masked(program):
        weight, mask = stated(program, view)
        check_nm(mask, Pattern(2, 4))
        assert torch.equal(mask, keep_nm(weight.abs(), Pattern(2, 4)))
        assert float((weight[~mask].abs() < 1e-3).float().mean()) > 0.95


def test_plain_adam_in_disguise_is_found_out(traced, text):
    _, rows = run(traced("llama"), CAST.replace("peak=0.02", "peak=0.0 proportional=false"), text)
    assert rows[-1]["masked"] / rows[-1]["kept"] > 0.1
    assert abs(rows[-1]["pruned"] / rows[-1]["unpruned"] - 1) > 0.005


def test_masks_are_kept_eight_to_a_byte(traced, tokens):
    program, _ = run(traced("block"), "insert-masks | choose-masks{pattern=2:4}", tokens)
    masks = AdaptiveMasks(program, Refresh(1, Pattern(2, 4)), dense_forward=False)
    state = masks.state_dict()
    before = {path: mask.clone() for path, mask in masks.masks.items()}
    for path, mask in before.items():
        assert state["masks"][path].dtype == torch.uint8
        assert len(state["masks"][path]) == -(-mask.numel() // 8)
    for mask in masks.masks.values():
        mask.logical_not_()
    masks.load_state_dict(state)
    assert all(torch.equal(before[path], mask) for path, mask in masks.masks.items())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("decay=ars-ste", "decay pulls on weights whose masks move; add masks=every{steps=10}"),
        ("masks=every{steps=0}", "masks=every{steps=0} must be at least 1"),
        (
            "masks=every update=norms",
            "masks=every moves whole weights: it needs update=all, not norms",
        ),
        ("masks=every decay=ars-ste{ramp=2.0}", "ramp=2.0 is a fraction of the steps, from 0 to 1"),
        ("masks=every{pattern=2:5}", "2:5"),
        ("masks=every decay=adams", "adams can move a weight by"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, sentence, traced, tokens):
    with pytest.raises(SparsifyError) as caught:
        run(traced("block"), f"insert-masks | train{{steps=4 {options}}}", tokens)
    assert sentence in str(caught.value)


def test_masks_that_do_not_exist_cannot_move(traced, tokens):
    with pytest.raises(SparsifyError, match=r"mask\.weights"):
        run(traced("block"), "train{steps=4 masks=every}", tokens)


@pytest.mark.parametrize(
    "deployed",
    [
        "pack-nm",
        "insert-quantizers{values=int4 group=32} | choose-scales{by=mse} | pack-nm{values=int4}",
    ],
)
def test_the_result_goes_straight_on_to_packed_weights(deployed, traced, text):
    trained, _ = run(traced("llama"), f"{AST.format('2:4', 'ars-ste', 12)} | fold-masks", text)
    dense = sum(trained.tensor(view.weight).nbytes for view in linears(trained))
    batch, before = text.batch([0, 1]), trained.clone()
    packed, _ = run(trained, deployed, text)
    assert "packed" in packed.features
    bytes_now = sum(v.nbytes for path, v in packed.tensors() if path.endswith("_packed"))
    assert bytes_now < 0.7 * dense
    if deployed == "pack-nm":
        assert torch.allclose(packed.run(batch)[0], before.run(batch)[0], atol=1e-4)
