"""SLiM as passes: what the branches are set to, that they learn, are rounded, stay beside packed weights."""

import pytest
import torch

from sparsify import native
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.features.beside import branches_beside
from sparsify.ir.tensor_names import adapter
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import composed_weight, effective_weight, linears, out_in
from sparsify.ir.views.packed import packed_linears, unpacked_weight
from sparsify.recipes import recipe
from sparsify.runtime.session import onnxruntime_session
from sparsify.select.statistics import statistics_of
from sparsify.tensors.lowrank import best_rank, best_rank_by_gram, best_rank_by_saliency, saliency
from sparsify.tensors.masks import check_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import relative_difference
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight

SEEN = "insert-probes{gram=true} | calibrate{samples=40} | insert-masks"
QUANTIZERS = "insert-quantizers{values=int4 group=32}"
SLIM_QUANT = f"{QUANTIZERS} | choose-scales{{by=histogram}}"
WANDA = "choose-masks{score=wanda pattern=2:4}"
LOST = f"{SEEN} | {SLIM_QUANT} | {WANDA} | insert-adapters{{ratio=0.3}}"
PACKED = "remove-probes | fold-masks | pack-nm{values=int4}"
ROUNDED = (
    "insert-quantizers{values=int4 group=128 activations=false targets=*_adapter_*} | "
    "choose-scales{targets=*_adapter_*}"
)


def run(program, pipeline, data=None, **context):
    return parse(pipeline).run(program, Context(data=data, **context))


@pytest.fixture(scope="module")
def slim(traced, tokens):
    """`block` and its clone with masks, scales and empty branches."""
    program = run(traced("block"), LOST, tokens)
    return lambda: (traced("block"), program.clone())


def shortened(name):
    return recipe(name).text.replace("samples=128", "samples=20").replace("steps=100", "steps=2")


def stored(program, one):
    return program.tensor(one.a).detach(), program.tensor(one.b).detach()


def closed_form(by, error, rank, seen):
    if by == "naive":
        return best_rank(error, rank)
    if by == "slim":
        return best_rank_by_saliency(error, saliency(seen.square, seen.tokens), rank)
    return best_rank_by_gram(error, seen.gram, rank)


@pytest.mark.parametrize("by", ["naive", "slim", "gram"])
def test_the_branches_are_the_closed_forms_of_what_was_lost(by, slim):
    check_closed_forms(by, *slim(), 6)


def test_transposed_weights_have_the_same_branches(traced, text):
    check_closed_forms("slim", traced("gpt2"), run(traced("gpt2"), LOST, text), 8)


def check_closed_forms(by, dense, program, count):
    before = {path: value.clone() for path, value in program.tensors()}
    run(program, f"choose-adapters{{by={by}}}", dense=dense)
    found = branches_beside(program, adapter)
    assert len(found) == count
    for one in found:
        view, (a, b) = one.linear, stored(program, one)
        error = dense.tensor(view.weight).detach() - effective_weight(program, view)
        assert len(a) == int(0.3 * min(error.shape))
        seen = statistics_of(program, view)
        wanted = closed_form(by, out_in(view, error), len(a), seen)
        for mine, theirs in zip((a, b), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert torch.equal(program.tensor(view.weight), before[view.weight])


def test_what_is_kept_absorbs_what_the_branch_says_there(slim):
    dense, program = slim()
    run(program, "choose-adapters{absorb=true}", dense=dense)
    for one in branches_beside(program, adapter):
        view, (a, b) = one.linear, stored(program, one)
        mask, wanted = program.tensor(view.mask), dense.tensor(view.weight).detach()
        whole = composed_weight(program, view) + b @ a
        torch.testing.assert_close(whole * mask, wanted * mask, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masks", [WANDA, "choose-masks{score=sparsegpt pattern=2:4 scales=mse}"])
def test_the_outputs_come_nearer_step_by_step(masks, traced, tokens):
    batch = tokens.batch(range(40))
    dense = traced("block")
    wanted = dense.run(batch)[0]
    start = run(
        traced("block"), f"{SEEN} | {SLIM_QUANT} | {masks} | insert-adapters{{ratio=0.4}}", tokens
    )
    lost = [float((start.run(batch)[0] - wanted).norm())]
    for by in ("naive", "gram"):
        program = run(start.clone(), f"choose-adapters{{by={by}}}", dense=dense)
        lost.append(float((program.run(batch)[0] - wanted).norm()))
    assert lost[0] > lost[1] > lost[2] > 0


def test_order_matters_and_zeros_stay_zeros(traced, tokens):
    """S4: scales of the dense weight and scales of the pruned one give other weights; both are 2:4."""
    found = {}
    for name, pipeline in (
        ("scales first", f"{SEEN} | {SLIM_QUANT} | {WANDA}"),
        ("masks first", f"{SEEN} | {WANDA} | {SLIM_QUANT}"),
    ):
        program = run(traced("block"), pipeline, tokens)
        views = [view for view in linears(program) if view.quantizer is not None]
        for view in views:
            mask = out_in(view, program.tensor(view.mask))
            check_nm(mask, Pattern(2, 4))
            assert not out_in(view, effective_weight(program, view))[~mask].any()
        found[name] = [effective_weight(program, view) for view in views]
        # A second choice of scales finds the zeros where they were.
        run(program, "choose-scales{by=histogram}")
        for view in views:
            assert not effective_weight(program, view)[~program.tensor(view.mask)].any()
    assert any(not torch.equal(a, b) for a, b in zip(*found.values(), strict=True))


def test_rounded_branches_beside_packed_weights_learn_alone(slim, tokens):
    """S5: straight through the rounding of A and B, while the packed bytes stay bit for bit."""
    dense, program = slim()
    pipeline = f"choose-adapters | {PACKED} | {ROUNDED}"
    context = Context(data=tokens, dense=dense)
    parse(pipeline).run(program, context)
    before = {path: value.detach().clone() for path, value in program.tensors()}
    parse("train{steps=25 batch=8 lr=0.003 update=adapters task=0.0 distill=kl}").run(
        program, context
    )
    for path, value in program.tensors():
        assert torch.equal(value, before[path]) != path.endswith(("adapter_a", "adapter_b")), path
    losses = [row["loss"] for row in context.figures["train"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    outputs = program.run()[0]
    run(program, "fold-quantizers")
    assert torch.equal(program.run()[0], outputs)
    assert program.features == {"packed", "adapters"}
    for path, value in program.tensors():
        if path.endswith(("adapter_a", "adapter_b")):
            scales = before[f"{path}_quantizer_scales"]
            codes = round_weight(value.detach(), scales, 128, 4)
            assert torch.equal(dequantize(codes, scales, 128), value.detach())


def test_scales_of_branches_are_those_of_absmax(slim):
    dense, program = slim()
    run(program, f"choose-adapters | {PACKED} | {ROUNDED}", dense=dense)
    views = [view for view in linears(program) if view.quantizer is not None]
    assert len(views) == 12
    for view in views:
        assert view.input_quantizer is None
        weight = program.tensor(view.weight).detach()
        assert torch.equal(program.tensor(view.quantizer.scales), absmax_scales(weight, 128, 4))


def test_the_tuned_recipe_ends_packed_with_branches(traced, tokens):
    program = run(traced("block"), shortened("slim-tuned"), tokens)
    assert len(packed_linears(program)) == 6
    assert program.features == {"packed", "adapters"}


def test_the_recipe_runs_in_onnx(traced, tokens, tmp_path, monkeypatch):
    """With our kernels and on a plain runtime; the branch is two products and a sum."""
    program = run(traced("block"), shortened("slim"), tokens)
    assert program.features == {"packed", "adapters"}
    assert len(packed_linears(program)) == to_text(program).count("_adapter_b_blocks") == 6
    path = export(program, tmp_path, ["onnx"])["onnx"] / "model.onnx"
    inputs = program.complete(tokens.batch([0, 1, 2]))
    arrays = {key: value.numpy() for key, value in inputs.items()}
    for library in (native.library(), tmp_path / "none"):
        monkeypatch.setenv(native.ENVIRONMENT, str(library))
        found = onnxruntime_session(path).run(None, arrays)[0]
        assert relative_difference(program.run(inputs)[0], torch.from_numpy(found)) < 0.05


def test_packed_and_masked_programs_agree(slim):
    dense, program = slim()
    run(program, "choose-adapters | remove-probes | fold-masks", dense=dense)
    views = {view.weight: view for view in linears(program)}
    packed = run(program.clone(), "pack-nm{values=int4}")
    for view in packed_linears(packed):
        one = views[view.weight.removesuffix("_packed")]
        assert torch.equal(unpacked_weight(packed, view), effective_weight(program, one))
    assert relative_difference(program.run()[0], packed.run()[0]) < 0.05


@pytest.mark.parametrize(
    "branch", ["insert-slorb{k=4} | choose-slorb | remove-probes", "insert-adapters"]
)
def test_every_branch_outlives_the_packing(branch, traced, tokens):
    program = run(traced("block"), f"{SEEN} | {WANDA} | {branch} | fold-masks", tokens)
    before = program.features
    assert relative_difference(program.run()[0], run(program, "pack-nm").run()[0]) < 1e-5
    assert program.features == (before | {"packed"}) - {"mask.weights"}


def test_the_dense_model_must_be_one_of_the_same_places(traced, tokens):
    moved = "insert-probes | calibrate{samples=8} | permute-channels{score=wanda} | remove-probes"
    with pytest.raises(
        OptionError, match="channels were moved or removed since the model was dense"
    ):
        run(traced("block"), f"{moved} | insert-adapters | choose-adapters{{by=naive}}", tokens)


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        ("insert-adapters{ratio=0.0}", "ratio=0.0 is not a part of the smaller side"),
        ("insert-adapters{multiple=0}", "multiple=0 must be at least 1"),
        ("insert-adapters | choose-adapters", "needs ['stats']"),
        (
            "insert-lora{rank=2} | insert-adapters | choose-adapters{by=naive absorb=true}",
            "put fold-lora before",
        ),
        ("insert-probes | calibrate | insert-adapters | choose-adapters{by=gram}", "gram=true"),
        (
            "insert-quantizers | choose-scales | fold-quantizers",
            "the input of @query.weight is rounded",
        ),
        ("insert-quantizers{targets=*_adapter_*}", "the target '*_adapter_*' matches no linear"),
        ("insert-quantizers{targets=*_adaptor_*}", "the target '*_adaptor_*' matches no linear"),
        ("train{steps=1 update=adapters}", "needs ['adapters']"),
    ],
)
def test_what_cannot_be_is_refused(pipeline, sentence, traced, tokens):
    with pytest.raises((OptionError, PipelineError)) as caught:
        run(traced("block"), pipeline, tokens)
    assert sentence in str(caught.value)


def test_ranks_are_rounded_up_to_a_multiple(traced):
    program = run(traced("block"), "insert-adapters{ratio=0.4 multiple=4}")
    assert {len(program.tensor(one.a)) for one in branches_beside(program, adapter)} == {4}


def test_a_pruned_branch_is_packed_and_still_one(traced, tokens):
    """Its A at 2:4, beside a packed weight: the feature stays as long as the branch does."""
    program = run(
        traced("block"), "insert-masks | choose-masks{pattern=2:4} | insert-adapters | fold-masks"
    )
    run(
        program,
        "insert-masks{targets=*_adapter_a} | choose-masks{pattern=2:4 targets=*_adapter_a} | "
        "fold-masks | pack-nm{targets=*,*_adapter_a}",
    )
    assert len(packed_linears(program)) == 12
    assert program.features == {"packed", "adapters"}
