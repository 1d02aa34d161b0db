"""allocate-values: what rounding costs, the budget of bytes, and the passes that follow it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.views.linear import composed_weight, linears
from sparsify.ir.views.packed import packed_linears
from sparsify.pack.precisions import Precision, bytes_of, rounding_costs
from sparsify.recipes import recipe
from sparsify.tensors.packing.fit import Wanted
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight

PRUNED = "insert-masks | choose-masks{pattern=2:4}"
LESS, MORE = Precision("int4", 32), Precision("int8", 64)


def run(program, pipeline, data=None):
    report = Report()
    program = parse(pipeline).run(program, Context(data=data), report=report)
    return program, [row.note for row in report.rows]


def weights(program):
    return {view.weight: view for view in linears(program) if "layers" in view.weight}


def test_the_cost_is_the_second_order_of_the_loss(traced, text):
    """Against gradients of the loss that are taken here, a sample at a time."""
    program, _ = run(traced("llama"), PRUNED)
    views = weights(program)
    found = rounding_costs(program, views, (LESS, MORE), text, [3, 8])
    path = "model.layers.1.mlp.up_proj.weight"
    stored, squares = program.tensor(path), 0.0
    for index in (3, 8):
        batch = text.batch([index])
        stored.requires_grad_(True)
        logits = program.module(**program.complete(batch))[0]
        loss = cross_entropy(logits[0, :-1], batch["input_ids"][0, 1:])
        squares += torch.autograd.grad(loss, stored)[0].square() / 2
    weight = composed_weight(program, views[path]).detach()
    for precision, bits in ((LESS, 4), (MORE, 8)):
        scales = absmax_scales(weight, precision.group, bits)
        codes = round_weight(weight, scales, precision.group, bits)
        error = weight - dequantize(codes, scales, precision.group)
        wanted = float((squares * error.square()).sum() / 2)
        assert found[precision][path] == pytest.approx(wanted, rel=1e-4)
    assert all(found[LESS][path] > 50 * found[MORE][path] > 0 for path in views)


@pytest.mark.parametrize("bytes_each", [0.5, 0.6, 0.65])
def test_what_is_packed_keeps_to_the_budget(bytes_each, traced, text):
    steps = f"{PRUNED} | fold-masks | allocate-values{{bytes={bytes_each} samples=4}}"
    program, notes = run(traced("llama"), steps, text)
    planned = program.plan["values"]
    count = sum(program.tensor(path).numel() for path in planned)
    wide = [path for path, values in planned.items() if values == "int8:64"]
    assert 0 < len(wide) < len(planned)
    steps = "insert-quantizers{values=allocated} | choose-scales | pack-nm{values=rounded}"
    packed, _ = run(program, steps)
    found = packed.plan["packed"]
    assert {path: f"{form['values']}:{form['group']}" for path, form in found.items()} == planned
    total = sum(form["bytes"][1] for form in found.values())
    assert total <= bytes_each * count
    assert f"{len(wide)} weights in int8" in notes[-1]
    assert notes[-1].endswith(f"{total / count:.3f} bytes a weight")


def test_one_round_packs_what_two_did(traced, text):
    pruned, _ = run(traced("llama"), f"{PRUNED} | fold-masks")
    at_once, _ = run(
        pruned.clone(),
        "allocate-values{bytes=0.6 samples=4} | insert-quantizers{values=allocated} | choose-scales | "
        "pack-nm{values=rounded}",
        text,
    )
    planned, apart = at_once.plan["values"], pruned
    for values, group in (("int4", 32), ("int8", 64)):
        mine = ",".join(path for path in planned if planned[path] == f"{values}:{group}")
        apart, _ = run(
            apart,
            f"insert-quantizers{{values={values} group={group} targets={mine}}} | choose-scales | "
            f"pack-nm{{values={values} targets={mine}}}",
        )
    assert torch.equal(at_once.run()[0], apart.run()[0])
    assert {view.layout.values for view in packed_linears(at_once)} == {"int4", "int8"}


def test_the_dearest_weights_get_the_bytes(traced, text):
    """With room for one more int8 the weight that saves most for its bytes has it."""
    program, _ = run(traced("llama"), PRUNED)
    views, wanted = weights(program), Wanted.parse("2:4")
    costs = rounding_costs(program, views, (LESS, MORE), text, range(len(text)))
    small, large = (
        {path: bytes_of(program, views[path], each, wanted) for path in views}
        for each in (LESS, MORE)
    )
    worth = {p: (costs[LESS][p] - costs[MORE][p]) / (large[p] - small[p]) for p in views}
    best = max(worth, key=worth.__getitem__)
    count = sum(program.tensor(path).numel() for path in views)
    room = (sum(small.values()) + large[best] - small[best] + 1) / count
    program, _ = run(program, f"allocate-values{{bytes={room!r} samples={len(text)}}}", text)
    assert program.plan["values"][best] == "int8:64"


def test_dense_weights_take_the_bytes_of_blocks(traced, text):
    steps = (
        "allocate-values{bytes=0.9 samples=2} | insert-quantizers{values=allocated} | choose-scales"
    )
    program, notes = run(traced("gpt2"), f"{steps} | pack-dense", text)
    found = program.plan["packed"]
    assert {form["values"] for form in found.values()} == {"int4", "int8"}
    count = sum(program.tensor(path).numel() for path in found if program.has(path))
    assert count == 0
    sizes = [form["bytes"] for form in found.values()]
    total, weights_in_all = (
        sum(after for _, after in sizes),
        sum(before // 4 for before, _ in sizes),
    )
    assert total <= 0.9 * weights_in_all
    assert any(note.endswith(f"{total / weights_in_all:.3f} bytes a weight") for note in notes)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("allocate-values{bytes=0.1}", "bytes=0.1 are too few: int4 everywhere takes 0."),
        (
            "allocate-values{int4=48}",
            "int4=48 is no group: 32, 64, 96 or 128 columns share a scale",
        ),
        ("allocate-values{samples=0}", "samples=0 measure nothing; use 32"),
        ("allocate-values{pattern=3:4}", "pattern 3:4 cannot be packed"),
        (
            "allocate-values{bytes=1 int4=96 int8=96}",
            "has no zeros of 2:4, and dense blocks have 32, 64 or 128 columns, not 96",
        ),
        (
            "allocate-values{bytes=1} | insert-quantizers{values=allocated group=32}",
            "allocate-values gives each linear its group, and gives tables none: leave out group and ends",
        ),
        (
            "allocate-values{bytes=1 targets=*q_proj*} | insert-quantizers{values=allocated}",
            "no values; give both passes the same targets",
        ),
    ],
)
def test_what_cannot_be_meant(steps, sentence, traced, text):
    with pytest.raises(OptionError) as caught:
        run(traced("llama"), steps, text)
    assert sentence in str(caught.value)


def test_what_has_to_come_before(traced, text):
    with pytest.raises(PipelineError) as caught:
        run(traced("llama"), "insert-quantizers{values=allocated}")
    assert str(caught.value).endswith(
        "choose values=int8 or values=int4, or put allocate-values before it"
    )
    with pytest.raises(PipelineError, match="quantizers"):
        run(traced("llama"), "insert-quantizers | allocate-values", text)


@pytest.mark.parametrize("bad", ["int4", "int5:32", "int4:x", ":"])
def test_a_plan_of_another_hand_is_refused(bad):
    with pytest.raises(OptionError, match="is no rounding"):
        Precision.parse(bad)


def test_the_recipe_ends_in_packed_weights_of_both_kinds(traced, text, tmp_path):
    steps = recipe("sparsegpt-mixed").text.replace("samples=128", "samples=8")
    program, _ = run(traced("llama"), steps.replace("bytes=0.5", "bytes=0.6"), text)
    assert {view.layout.values for view in packed_linears(program)} == {"int4", "int8"}
    assert set(export(program, tmp_path, ["onnx-decode"])) == {"onnx-decode"}


@pytest.mark.parametrize(
    "steps",
    [
        "insert-masks | allocate-sparsity{by=uniform} | choose-masks | fold-masks",
        "allocate-values{bytes=1.0 samples=2}",
    ],
)
def test_what_is_in_the_plan_alone_hinders_no_cache(steps, traced, text, tmp_path):
    program, _ = run(traced("llama"), steps, text)
    assert program.features <= {"shares", "values"}
    assert set(export(program, tmp_path, ["onnx-decode"])) == {"onnx-decode"}
