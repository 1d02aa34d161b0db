"""Shares of layers, ranks from errors, masked branches that are recomputed: L1 to L11 of the reference."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sparsify.data.sequences import batches
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError, SparsifyError
from sparsify.ir.mode import set_training
from sparsify.ir.run.recomputed_weights import recomputed_weights
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import composed_weight, linears
from sparsify.select.layers import layer_errors, layers_of
from sparsify.tensors.masks import check_nm
from sparsify.tensors.pattern import Pattern

MASKED = "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=3}"


def run(program, pipeline, data=None, dense=None):
    return parse(pipeline).run(program, Context(data=data, dense=dense))


def masked(program):
    return [view for view in linears(program) if view.mask is not None]


def branches(program, scale=0.05):
    """Branches as if they had been trained."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for view in linears(program):
            if view.branch is not None:
                b = program.tensor(view.branch.b)
                b.copy_(scale * torch.randn(b.shape, generator=draw))


def shares(program):
    """The sparsity of each layer in the plan, and its number of weights."""
    plan = program.plan["shares"]
    rows = [
        ({float(plan[v.weight]) for v in layer.views}, layer.size(program))
        for layer in layers_of(program, masked(program))
    ]
    assert all(len(values) == 1 for values, _ in rows)
    return [(next(iter(values)), size) for values, size in rows]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_the_layers_of_a_family_hold_every_masked_linear_once(family, traced):
    program = run(traced(family), "insert-masks")
    layers = layers_of(program, masked(program))
    assert len(layers) == 2
    weights = [view.weight for layer in layers for view in layer.views]
    outside = {view.weight for view in masked(program)} - set(weights)
    assert outside == ({"bert.pooler.dense.weight"} if family == "bert" else set())
    assert len({len(layer.views) for layer in layers}) == 1


@pytest.mark.parametrize("by", ["uniform", "rmi", "owl", "alpha", "atp", "global"])
def test_the_mean_share_is_exact_and_layers_differ(by, traced, text):
    extra = " spread=0.1" if by == "atp" else ""
    stats = "insert-probes | calibrate{samples=4} | " if by == "owl" else ""
    before = to_text(traced("llama"))
    program = run(
        traced("llama"),
        f"{stats}insert-masks | allocate-sparsity{{by={by} sparsity=0.6 times=2.0{extra}}}",
        text,
    )
    found = shares(program)
    total = sum(size for _, size in found)
    rounding = 1 / total if by == "global" else 1e-9
    assert sum(s * size for s, size in found) / total == pytest.approx(0.6, abs=rounding)
    assert (len({s for s, _ in found}) > 1) == (by != "uniform")
    if by == "rmi":
        assert sorted(s for s, _ in found) == pytest.approx([0.58, 0.62])
    assert to_text(traced("llama")) == before


def test_shares_of_whole_entries(traced, text):
    program = run(
        traced("llama"), "insert-masks | allocate-sparsity{by=atp spread=0.25 sparsity=0.75 m=8}"
    )
    assert list(program.plan["shares"].values()) == ["3:8"] * 7 + ["1:8"] * 7


def test_redundancy_decides_whole_entries_without_being_told_a_spread(traced, text):
    allocate = "insert-masks | allocate-sparsity{by=rmi sparsity=0.75 m=8 samples=4}"
    assert set(run(traced("llama"), allocate, text).plan["shares"].values()) == {"1:8", "3:8"}


def test_an_error_is_zero_for_the_dense_model_and_free_of_the_scale_of_a_channel(traced, text):
    dense = run(traced("llama"), "insert-masks")
    layers = layers_of(dense, masked(dense))
    parts = list(batches(text, [0, 1, 2, 3], 2))
    assert layer_errors(dense, dense, layers, iter(parts)).tolist() == [0.0, 0.0]
    sparse = run(dense.clone(), "choose-masks{sparsity=0.5}")
    found = layer_errors(sparse, dense, layers_of(sparse, masked(sparse)), iter(parts))
    assert 0.01 < float(found[0]) < float(found[1])  # errors add up
    for program in (sparse, dense):  # what writes channel 5 of the residual stream
        with torch.no_grad():
            for view in masked(program):
                if view.weight.endswith(("o_proj.weight", "down_proj.weight")):
                    program.tensor(view.weight)[5] *= 10
            program.tensor("model.embed_tokens.weight")[:, 5] *= 10
            for path, value in program.tensors():
                if path.endswith("layernorm.weight"):
                    value[5] /= 10
    again = layer_errors(sparse, dense, layers_of(sparse, masked(sparse)), iter(parts))
    # The norms see the channel larger, so that all else moves too: of the same order is what holds.
    assert bool((again < 3 * found + 0.1).all())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ranks_change_and_the_function_does_not(family, traced, text):
    dense = traced(family)
    program = run(dense.clone(), MASKED, text)
    branches(program)
    batch = {k: v for k, v in text.batch([5, 6]).items() if k in program.sample}
    before = program.run(batch)[0]
    old = {v.branch.a: program.tensor(v.branch.a).clone() for v in masked(program)}
    run(program, "allocate-ranks{mean=4 largest=8 samples=4}", text, dense)
    ranks = [
        {program.tensor(v.branch.a).shape[0] for v in layer.views}
        for layer in layers_of(program, masked(program))
    ]
    assert all(len(found) == 1 for found in ranks)
    sizes = [found.pop() for found in ranks]
    assert sum(sizes) == 4 * len(sizes)
    assert max(sizes) > 3  # grown
    for view in masked(program):
        a, b = program.tensor(view.branch.a), program.tensor(view.branch.b)
        assert a.shape[0] == b.shape[1]
        kept = min(3, a.shape[0])
        assert torch.equal(a[:kept], old[view.branch.a][:kept])
    run(program, "allocate-ranks{mean=1 largest=2 samples=4}", text, dense)
    after = program.run(batch)[0]
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert all(program.tensor(v.branch.a).shape[0] == 1 for v in masked(program))


def test_ranks_follow_the_layer_that_errs_most(traced, text):
    dense = traced("llama")
    program = run(
        dense.clone(),
        "insert-masks | choose-masks{sparsity=0.8 targets=*layers.1.*} | insert-lora{rank=2}",
        text,
    )
    run(program, "allocate-ranks{mean=4 largest=8 samples=4}", text, dense)
    first, second = (
        program.tensor(layer.views[0].branch.a).shape[0]
        for layer in layers_of(program, masked(program))
    )
    assert (first, second) == (1, 7)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_recomputed_weights_give_the_same_loss_and_gradients_and_keep_nothing(family, traced, text):
    program = run(traced(family), MASKED, text)
    branches(program)
    inputs = program.complete(text.batch([0, 1]))
    matrices = {tuple(program.tensor(v.weight).shape) for v in masked(program)}
    own = {value.data_ptr() for _, value in program.tensors()}
    before = to_text(program)

    def backward():
        kept = []

        def pack(value):
            if (
                tuple(value.shape) in matrices
                or tuple(value.t().shape if value.dim() == 2 else ()) in matrices
            ):
                kept.append(value.data_ptr() not in own)
            return value

        for _, value in program.module.named_parameters():
            value.grad = None
            value.requires_grad_(True)
        set_training(program.module, False)
        with saved_tensors_hooks(pack, lambda value: value):
            loss = program.module(**inputs)[0].float().square().mean()
        loss.backward()
        grads = {
            p: v.grad.clone() for p, v in program.module.named_parameters() if v.grad is not None
        }
        return loss.detach(), grads, sum(kept)

    plain, expected, held = backward()
    places = len(masked(program))
    with recomputed_weights(program) as count:
        assert count == places
        assert "recomputed_linear" in str(program.graph)
        again, found, left = backward()
    assert to_text(program) == before
    assert torch.allclose(plain, again, rtol=1e-6)
    assert held >= count
    assert left == 0
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert torch.allclose(value, found[path], rtol=1e-4, atol=1e-7), path


def test_gradients_are_those_of_finite_differences(traced):
    """In float64, and not those of the product without its mask."""
    from sparsify.ir.run.recomputed_weights import recomputed_linear

    draw = torch.Generator().manual_seed(0)

    def matrix(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    x, weight, a, b, bias = matrix(2, 3, 8), matrix(6, 8), matrix(2, 8), matrix(6, 2), matrix(6)
    mask = torch.rand(6, 8, generator=draw) < 0.5
    for flipped in (False, True):
        stored = (weight.t().detach().requires_grad_(), mask.t()) if flipped else (weight, mask)

        def layer(x, w, a, b, bias, mask=stored[1], flipped=flipped):
            return recomputed_linear(x, w, mask, a, b, bias, 2.0, flipped)

        assert torch.autograd.gradcheck(layer, (x, stored[0], a, b, bias))
    y = recomputed_linear(x, weight, mask, a, b, None, 2.0, False)
    (of_a,) = torch.autograd.grad(y.sum(), a)
    rows = torch.ones(6, 6, dtype=torch.float64) @ x.reshape(-1, 8)
    assert not torch.allclose(of_a, 2 * b.t() @ rows)


def test_what_cannot_be_allocated_is_refused(traced, text):
    with pytest.raises(OptionError, match="by=atp needs spread"):
        run(traced("llama"), "insert-masks | allocate-sparsity{by=atp}")
    with pytest.raises(OptionError, match="largest=64 does not fit"):
        run(traced("llama"), f"{MASKED} | allocate-ranks{{mean=8 largest=64}}", text)
    with pytest.raises(OptionError, match="mean=9 must be from 1 to largest=8"):
        run(traced("llama"), f"{MASKED} | allocate-ranks{{mean=9 largest=8}}", text)
    with pytest.raises(OptionError, match="samples=1 are too few to compare layers"):
        run(traced("llama"), "insert-masks | allocate-sparsity{samples=1}", text)
    program = run(traced("llama"), "insert-masks{targets=lm_head}")
    with pytest.raises(SparsifyError, match="no target lies in a residual layer"):
        layers_of(program, masked(program))


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_a_ladder_of_shares_reaches_its_sparsity_at_every_step(score, traced, text):
    """Wanda's masks are nested; SparseGPT's may let a weight back in. Branches stay what they were."""
    probes = "insert-probes{gram=true} | calibrate{samples=4} | insert-masks | insert-lora{rank=3}"
    program = run(traced("llama"), probes, text)
    branches(program)
    earlier = None
    for sparsity in (0.3416, 0.5488, 0.6552):
        factors = {v.branch.b: program.tensor(v.branch.b).clone() for v in masked(program)}
        run(
            program,
            f"allocate-sparsity{{sparsity={sparsity} samples=8}} | choose-masks{{score={score}}}",
            text,
        )
        masks = {v.weight: program.tensor(v.mask).clone() for v in masked(program)}
        size = sum(mask.numel() for mask in masks.values())
        zeros = size - sum(int(mask.sum()) for mask in masks.values())
        assert abs(zeros / size - sparsity) < 1 / 64
        if earlier is not None and score == "wanda":
            assert not any(bool((mask & ~earlier[path]).any()) for path, mask in masks.items())
        earlier = masks
        assert all(torch.equal(program.tensor(path), b) for path, b in factors.items())


def test_sparsegpt_under_a_branch_gives_the_weight_it_would_give_without(traced, text):
    """What the linear computes is SparseGPT's weight, the branch beside it taken into account."""
    probes = "insert-probes{gram=true} | calibrate{samples=4} | insert-masks"
    plain = run(traced("gpt2"), f"{probes} | insert-lora{{rank=3}}", text)
    branches(plain)
    folded = run(plain.clone(), "fold-lora")
    choice = "choose-masks{score=sparsegpt sparsity=0.5}"
    run(plain, choice)
    run(folded, choice)
    here, there = ({v.weight: composed_weight(p, v) for v in linears(p)} for p in (plain, folded))
    for path, value in here.items():
        assert torch.allclose(value, there[path], rtol=1e-4, atol=1e-5), path


@pytest.mark.parametrize("score", ["ria", "dsnot", "alps"])
def test_relatives_prune_to_the_pattern(score, traced, text):
    program = run(
        traced("llama"),
        "insert-probes{gram=true} | calibrate{samples=4} | insert-masks | "
        f"choose-masks{{score={score} pattern=2:4}}",
        text,
    )
    for view in masked(program):
        check_nm(program.tensor(view.mask), Pattern(2, 4))


def test_shares_that_have_no_place_are_refused(traced, text):
    with pytest.raises(PipelineError, match="shares"):
        run(traced("llama"), "insert-masks | choose-masks")
    with pytest.raises(OptionError, match="has no place for their shares"):
        run(
            traced("llama"),
            "insert-masks | allocate-sparsity{by=uniform} | choose-masks{scope=global}",
        )
    with pytest.raises(OptionError, match="give both passes the same targets"):
        run(
            traced("llama"),
            "insert-masks | allocate-sparsity{by=uniform targets=*layers.0.*} | choose-masks",
        )
