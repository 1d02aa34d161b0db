"""pack-dense: packed programs compute what rounded ones compute, and what does not fit is refused."""

import pytest
import torch
from torch import nn

from sparsify.describe.count import count, count_parameters, count_zeros
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.summary import rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.ops.block_linear import block_linear
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import effective_weight, linears, out_in
from sparsify.ir.views.packed import block_weights, unblocked_weight

ROUND = "insert-quantizers{values=%s group=32 ends=true} | choose-scales"
SPARSE = (
    "insert-masks | choose-masks{pattern=2:4} | fold-masks | "
    "insert-quantizers{values=int4} | choose-scales | pack-nm{values=int4}"
)


def run(program, pipeline, report=None):
    return parse(pipeline).run(program, Context(), report=report)


def paths(program):
    return {view.codes for view in block_weights(program)}


@pytest.mark.parametrize("values", ["int4", "int8"])
def test_rounded_and_packed_programs_are_the_same(values, traced, tmp_path):
    rounded = run(traced("block"), ROUND % values)
    packed = run(rounded.clone(), "pack-dense")
    ids = torch.randint(3, 11, (3, 9), generator=torch.Generator().manual_seed(1))
    inputs = packed.complete({"input_ids": ids})
    for one, two in zip(rounded.run(inputs), packed.run(inputs), strict=True):
        assert float((one - two).abs().max()) <= 1e-5 * float(one.abs().max())
    views = {f"{view.weight}_blocks": view for view in linears(rounded)}
    for view in block_weights(packed):
        dense = views.get(view.codes)
        if dense is not None:
            weight = out_in(dense, effective_weight(rounded, dense))
            assert torch.equal(unblocked_weight(packed, view), weight)
            assert not packed.has(dense.weight)
    assert linears(packed) == []
    assert packed.features == {"packed"}
    save(packed, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert to_text(loaded) == to_text(packed)
    assert all(torch.equal(a, b) for a, b in zip(packed.run(), loaded.run(), strict=True))


def test_both_ends_after_what_is_sparse(traced):
    """A tied table is stored once; figures count packed weights as the dense ones they stand for."""
    program, report = traced("block"), Report()
    before, whole = count_parameters(program), count(program)
    packed = run(program, f"{SPARSE} | {ROUND % 'int4'} | pack-dense", report)
    assert [view.is_table for view in block_weights(packed)] == [True, False]
    assert paths(packed) == {"head.weight_blocks"}
    assert report.rows[-1].move <= 1e-5
    assert report.rows[-1].note == "1 weights packed; 352 bytes -> 198 bytes"
    counts = count(packed)
    assert count_parameters(packed) == before == counts.parameters
    assert counts.linear_parameters == whole.linear_parameters
    assert counts.linear_zeros == count_zeros(packed) > counts.linear_parameters / 4
    assert counts.dense_multiply_adds == whole.multiply_adds


def test_the_rows_of_a_table(traced):
    program = traced("block")
    table = program.tensor("head.weight").detach().clone()
    packed = run(program, f"{ROUND % 'int8'} | pack-dense")
    view = next(view for view in block_weights(packed) if view.is_table)
    found = unblocked_weight(packed, view)
    step = table.abs().amax(1, keepdim=True) / 127
    assert bool(((found - table).abs() <= step * 0.51).all())


def test_packed_axes_are_pinned_with_the_reason(traced):
    program = run(traced("mlp"), "insert-quantizers{group=32 targets=down} | choose-scales")
    run(program, "pack-dense")
    pins = [pin for row in rows(analyse(program)) for pin in row.pins]
    assert "packed into the bytes of sparsify.block_linear" in pins


def test_gradients_reach_the_input_and_the_bias(traced):
    packed = run(traced("mlp"), f"{ROUND % 'int8'} | pack-dense")
    view = next(view for view in block_weights(packed) if view.bias is not None)
    x = torch.randn(4, view.form.columns, requires_grad=True)
    codes, scales = packed.tensor(view.codes), packed.tensor(view.scales)
    bias = torch.zeros(len(codes), requires_grad=True)
    form = (view.form.columns, view.form.values, view.form.group)
    block_linear(x, codes, scales, bias, *form).sum().backward()
    torch.testing.assert_close(x.grad[0], unblocked_weight(packed, view).sum(0))
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 4))


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (
            "insert-quantizers{group=96} | choose-scales",
            "has a scale for 96 columns, and blocks have",
        ),
        (
            "insert-quantizers{group=32 activations=false} | choose-scales",
            r"the input of @up\.weight has no quantizer, and the product rounds it",
        ),
        (
            "insert-quantizers{group=32} | choose-scales{targets=up}",
            r"@down\.weight has no scales yet; widen the targets of choose-scales",
        ),
    ],
)
def test_what_cannot_be_packed(before, message, traced):
    with pytest.raises(OptionError, match=message):
        run(traced("mlp"), f"{before} | pack-dense")


def test_what_comes_in_the_wrong_order(traced):
    early = SPARSE.replace("int4}", "int4 ends=true}", 1)
    with pytest.raises(OptionError, match=r"@head\.weight has a quantizer but would stay dense"):
        run(traced("block"), early)
    apart = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.ReLU())
    ids = torch.arange(6).reshape(2, 3)
    with pytest.raises(OptionError, match=r"the table @0\.weight has a quantizer but no zeros"):
        run(trace(apart, {"input": ids}), early)
    with pytest.raises(PipelineError, match=r"needs .*quantized"):
        run(traced("mlp"), "insert-quantizers | pack-dense")
    with pytest.raises(OptionError, match=r"@head\.weight is no weight of linears alone"):
        run(traced("block"), "insert-quantizers{targets=head}")
