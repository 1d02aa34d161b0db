"""Scales of the rows of weights: their gradient, and that they fold without a trace."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.views.linear import linears, out_in
from sparsify.tensors.masks import check_nm
from sparsify.tensors.pattern import Pattern

CAST = (
    "insert-masks | insert-scales | "
    "train{steps=20 batch=8 lr=0.004 masks=every{steps=5} decay=adams{peak=0.02 reach=0.0}}"
)


def run(program, pipeline, data=None):
    return parse(pipeline).run(program, Context(data=data, seed=0))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_op_and_its_gradient_are_those_of_a_plain_product(transposed):
    draw = torch.Generator().manual_seed(0)
    stored = torch.randn(6, 8, generator=draw)
    weight = (stored.t().contiguous() if transposed else stored.clone()).requires_grad_()
    scales = torch.randn(6, 2, generator=draw, requires_grad=True)
    upstream = torch.randn(6, 8, generator=draw)
    got = scale_weight(weight, scales, transposed)
    rows = got.t() if transposed else got
    (rows * upstream).sum().backward()

    plain, factors = stored.clone().requires_grad_(), scales.detach().clone().requires_grad_()
    product = torch.cat([plain[:, :4] * factors[:, :1], plain[:, 4:] * factors[:, 1:]], 1)
    (product * upstream).sum().backward()
    assert torch.equal(rows, product)
    found = weight.grad.t() if transposed else weight.grad
    assert torch.allclose(found, plain.grad)
    assert torch.allclose(scales.grad, factors.grad, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trained_scales_fold_and_leave_bare_linears(family, traced, text):
    plain = {path for path, _ in traced(family).tensors()}
    program = run(traced(family), CAST, text)
    batch = text.batch([0, 1])
    assert any(
        not torch.equal(program.tensor(view.row_scales), torch.ones_like(scales))
        for view in linears(program)
        if view.row_scales and (scales := program.tensor(view.row_scales)) is not None
    )
    before = program.run(batch)[0]
    folded = run(program, "fold-scales | fold-masks")
    assert torch.allclose(folded.run(batch)[0], before, atol=1e-4)
    assert {path for path, _ in folded.tensors()} == plain
    masked = [view for view in linears(folded) if view.weight in _targets(family, traced)]
    for view in masked:
        check_nm(out_in(view, folded.tensor(view.weight)) != 0, Pattern(2, 4))


def _targets(family, traced):
    return {v.weight for v in linears(run(traced(family), "insert-masks")) if v.mask}


def test_blocks_must_divide_the_inputs(traced):
    with pytest.raises(OptionError, match="blocks=3 does not divide the"):
        run(traced("llama"), "insert-scales{blocks=3}")


def test_passes_that_would_take_the_scales_for_weights_wait(traced):
    with pytest.raises(Exception, match="put fold-scales before it"):
        run(traced("llama"), "insert-masks | insert-scales | choose-masks{pattern=2:4}")
