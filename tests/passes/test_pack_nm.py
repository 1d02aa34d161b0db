"""pack-nm: packed programs agree with masked ones, and what does not fit is refused with its place."""

import pytest
import torch
from torch.nn.functional import linear

from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import DataError, ExportError, OptionError, SparsifyError
from sparsify.ir.axes.summary import rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import effective_weight, linears, out_in
from sparsify.ir.views.packed import block_weights, packed_linears, unpacked_weight
from sparsify.recipes import recipe

SPARSE = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
ROUND = "insert-quantizers{values=%s group=32} | choose-scales"


def run(program, pipeline, report=None):
    return parse(pipeline).run(program, Context(), report=report)


def packed_program(program, values, pattern="2:4"):
    """The program before packing, and the packed one."""
    if values != "float32":
        run(program, ROUND % values)
    return program, run(program.clone(), f"pack-nm{{pattern={pattern} values={values}}}")


@pytest.fixture(scope="module")
def sparse(traced):
    """A program of its own with 2:4 zeros in place, pruned once."""
    known = {}

    def make(name):
        if name not in known:
            known[name] = run(traced(name), SPARSE)
        return known[name].clone()

    return make


def relative(one, two):
    return float((one - two).abs().max() / one.abs().max())


@pytest.mark.parametrize("values", ["float32", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_packed_and_masked_programs_agree(family, values, sparse):
    masked, packed = packed_program(sparse(family), values)
    views = {view.weight: view for view in linears(masked)}
    ids = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    inputs = packed.complete({"input_ids": ids})
    tolerance = 1e-5 if values == "float32" else 0.05
    for one, two in zip(masked.run(inputs), packed.run(inputs), strict=True):
        assert relative(one, two) < tolerance
    found = packed_linears(packed)
    assert len(found) >= 8
    generator = torch.Generator().manual_seed(2)
    for view in found:  # each layer on its own: no input's code can flip here
        dense = views[view.weight.removesuffix("_packed")]
        weight = out_in(dense, effective_weight(masked, dense))
        assert torch.equal(unpacked_weight(packed, view), weight)
        assert not packed.has(dense.weight)
        x = torch.randn(5, view.layout.in_features, generator=generator)
        entering = x if values == "float32" else quantize_activations(x, torch.tensor(True), 32)
        sizes = (2, 4, weight.shape[1], weight.shape[0], values, view.layout.group)
        y = nm_linear(x, packed.tensor(view.weight), None, *sizes)
        assert relative(linear(entering, weight), y) < 1e-5
    assert packed.features == {"packed"}


def test_the_smallest_n_of_every_weight(traced):
    """N:8 packs each weight at the N it allows; what is dense stays dense."""
    program = traced("block")
    for number, name in enumerate(("query", "key", "value"), 1):
        with torch.no_grad():
            program.tensor(f"{name}.weight")[:, number:] = 0
    with torch.no_grad():
        program.tensor("up.weight").zero_()
    before, report = program.run()[0], Report()
    run(program, "pack-nm{pattern=N:8}", report)
    patterns = {v.weight: str(v.layout.pattern) for v in packed_linears(program)}
    assert patterns == {
        "query.weight_packed": "1:8", "key.weight_packed": "2:8", "value.weight_packed": "3:8",
        "up.weight_packed": "1:8",
    }  # fmt: skip
    assert {view.weight for view in linears(program)} == {
        "out.weight", "down.weight", "head.weight",
    }  # fmt: skip
    assert relative(before, program.run()[0]) < 1e-5
    assert report.rows[-1].places == 4
    assert report.rows[-1].note.startswith("4 weights packed, 2 left dense; 1.9 kB -> ")


def test_bytes_before_and_after_are_recorded(sparse):
    report, program = Report(), sparse("llama")
    dense = count(program)
    run(program, "pack-nm", report)
    plan = program.plan["packed"]
    assert len(plan) == 14
    assert plan["model.layers.0.mlp.up_proj.weight"] == {
        "pattern": "2:4", "values": "float32", "group": 0, "bytes": [96 * 64 * 4, 96 * 64 * 17 // 8],
    }  # fmt: skip
    assert report.rows[-1].note == "14 weights packed, 0 left dense; 245.8 kB -> 130.6 kB"
    packed = count(program)
    same = ("parameters", "zeros", "linear_parameters", "linear_zeros", "sparsity")
    assert all(getattr(packed, key) == getattr(dense, key) for key in same)
    assert packed.bytes == dense.bytes - sum(a - b for a, b in (p["bytes"] for p in plan.values()))
    halved = 128 * sum(p["bytes"][0] // 4 for p in plan.values()) // 2
    assert packed.multiply_adds == dense.multiply_adds - halved
    assert packed.dense_multiply_adds == dense.multiply_adds == dense.dense_multiply_adds
    (row,) = report.rows
    assert (row.parameters, row.zeros) == (dense.parameters, dense.linear_zeros)
    assert "14 weights packed" in str(report.table().caption)


def test_packing_in_parts_and_the_second_time(sparse):
    program = sparse("mlp")
    outputs = program.run()[0]
    run(program, "pack-nm{targets=up} | pack-nm{targets=down pattern=4:8}")
    assert [view.weight for view in packed_linears(program)] == [
        "up.weight_packed", "down.weight_packed",
    ]  # fmt: skip
    assert set(program.plan["packed"]) == {"up.weight", "down.weight"}
    assert relative(outputs, program.run()[0]) < 1e-5
    with pytest.raises(OptionError, match="no target has the zeros of 2:4"):
        run(program, "pack-nm")


class Shared(torch.nn.Module):
    """One linear used twice, and a weight used as it stands and transposed."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.both = torch.nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        x = self.inner(torch.tanh(self.inner(x)))
        hidden = torch.tanh(torch.nn.functional.linear(x, self.both))
        return torch.addmm(x.mean(0), hidden, self.both).tanh()


def test_a_shared_weight_is_packed_once_and_a_transposed_use_refused():
    torch.manual_seed(0)
    program = trace(Shared(), {"x": torch.randn(3, 8)}, {"x": {0: "batch"}})
    run(
        program,
        "insert-masks{targets=inner} | choose-masks{targets=inner pattern=2:4} | fold-masks",
    )
    outputs = program.run()[0]
    run(program, "pack-nm{targets=inner}")
    assert [v.weight for v in packed_linears(program)] == ["inner.weight_packed"] * 2
    assert relative(outputs, program.run()[0]) < 1e-5
    with torch.no_grad():
        program.tensor("both").zero_()
    with pytest.raises(OptionError, match="is used both as it stands and transposed"):
        run(program, "pack-nm{targets=both}")


def test_a_bias_that_is_no_vector_is_added_behind():
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 6))
            self.bias = torch.nn.Parameter(torch.randn(1, 6))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight).tanh()

    torch.manual_seed(0)
    program = trace(Wide(), {"x": torch.randn(3, 8)}, {"x": {0: "batch"}})
    run(program, SPARSE)
    outputs = program.run()[0]
    run(program, "pack-nm")
    assert "add.Tensor" in to_text(program)
    assert relative(outputs, program.run()[0]) < 1e-5


def test_half_precision_is_packed_and_comes_back_in_it(tiny_module):
    program = trace(
        tiny_module("mlp").bfloat16(),
        {"x": torch.randn(2, 3, 8, dtype=torch.bfloat16)},
        {"x": {0: "batch", 1: "length"}},
    )
    for values in ("float32", "int8"):
        _, packed = packed_program(run(program.clone(), SPARSE), values)
        assert packed.run()[0].dtype == torch.bfloat16
        assert len(packed_linears(packed)) == 2


@pytest.mark.parametrize("values", ["float32", "int4"])
def test_what_stands_around_packed_weights_still_trains(values, sparse, tokens):
    _, program = packed_program(sparse("block"), values)
    before = {path: value.detach().clone() for path, value in program.tensors()}
    parse("train{steps=2 batch=2 lr=0.01}").run(program, Context(data=tokens))
    for path, value in program.tensors():
        learns = not path.endswith("_packed")
        assert torch.equal(value, before[path]) != learns, path


def test_packed_axes_are_pinned_with_the_reason(sparse):
    program = run(sparse("mlp"), "pack-nm{targets=down}")
    pins = [pin for row in rows(analyse(program)) for pin in row.pins]
    assert any(pin == "packed into the bytes of sparsify.nm_linear" for pin in pins)
    with pytest.raises(OptionError, match="no prunable channels"):
        run(program, "insert-masks{of=channels}")


@pytest.mark.parametrize("values", ["float32", "int8", "int4"])
def test_stored_programs_come_back_bitwise(values, sparse, tmp_path):
    from sparsify.engine.export import export

    _, program = packed_program(sparse("gpt2"), values)
    folder = export(program, tmp_path, ["safetensors"])["safetensors"]
    found = load(folder)
    assert to_text(found) == to_text(program)
    assert found.plan == program.plan
    assert all(torch.equal(v, found.tensor(path)) for path, v in program.tensors())
    assert torch.equal(found.run()[0], program.run()[0])


def test_damaged_files_are_refused_on_loading(sparse, tmp_path):
    program = run(sparse("mlp"), "pack-nm")
    program.put("up.weight_packed", program.tensor("up.weight_packed")[:-1])
    save(program, tmp_path / "p")
    with pytest.raises(DataError, match=r"does not fit its tensors: .* is uint8 \[1088\]"):
        load(tmp_path / "p")


def test_huggingface_has_no_form_for_it(sparse, tmp_path):
    from sparsify.engine.export import export

    program = run(sparse("llama"), "pack-nm")
    with pytest.raises(ExportError) as caught:
        export(program, tmp_path, ["huggingface"])
    assert str(caught.value) == (
        "huggingface cannot hold packed; leave pack-nm out of the pipeline, or export to safetensors"
    )


def test_bytes_that_say_something_else_are_never_kept(sparse, monkeypatch):
    """The weight is compared with what the bytes give before it is dropped."""
    from sparsify.pack import nm as packing

    program = sparse("mlp")
    honest = packing.pack
    monkeypatch.setattr(packing, "pack", lambda weight, *rest: honest(weight * 2, *rest))
    with pytest.raises(SparsifyError, match=r"@up.weight does not come back from its packed bytes"):
        run(program, "pack-nm")
    assert program.has("up.weight")


@pytest.mark.parametrize(
    ("name", "values"),
    [("packed", "float32"), ("packed-int8", "int8"), ("packed-int4-ends", "int4")],
)
def test_the_recipes_end_in_packed_weights(name, values, traced, text):
    """Whole, with fewer steps; at last with the tables and the tied head, which begins with packed-int4."""
    steps = (
        recipe(name)
        .text.replace("steps=80", "steps=2")
        .replace("calibrate", "calibrate{samples=8}")
    )
    program = parse(steps).run(traced("gpt2"), Context(data=text))
    found = packed_linears(program)
    assert len(found) == 8
    assert {view.layout.values for view in found} == {values}
    assert program.features == {"packed"}
    ends = [(view.is_table, view.form.values) for view in block_weights(program)]
    wanted = [(True, values), (True, values), (False, values)]
    assert ends == (wanted if name.endswith("ends") else [])
