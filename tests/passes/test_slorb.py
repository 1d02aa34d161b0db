"""SLoRB: what it is set to, that it learns, and that it stays at export."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.features.slorb import slorbs
from sparsify.ir.views.linear import composed_weight, linears, out_in

PRUNED = "insert-masks | choose-masks{pattern=2:4} | insert-slorb{k=4} | choose-slorb"


def run(program, pipeline, data=None):
    context = Context(data=data, seed=0)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_keep_their_sums_and_the_weights_come_closer(family, traced):
    program, _ = run(traced(family), PRUNED)
    found = slorbs(program)
    assert len(found) == sum(view.mask is not None for view in linears(program))
    for one in found:
        view = one.linear
        dense = out_in(view, program.tensor(view.weight)).detach()
        pruned = out_in(view, composed_weight(program, view))
        x, s = program.tensor(one.a).detach(), program.tensor(one.b).detach()
        with_branch = pruned + s @ x
        blocks = (len(dense), -1, 4)
        assert torch.allclose(
            with_branch.reshape(blocks).sum(2), dense.reshape(blocks).sum(2), atol=1e-5
        )
        gap = (dense - with_branch).norm()
        assert gap < (dense - pruned).norm()
        best = torch.linalg.lstsq(x.t(), (dense - pruned).t()).solution.t()
        assert torch.allclose(s, best, atol=1e-5)
        assert 2 * s.numel() == int(
            program.tensor(view.mask).sum()
        )  # 1/k of W, 2/k of what is kept


def test_the_branch_is_worth_something_at_once(traced, text):
    batch = text.batch([0, 1])
    dense = traced("llama").run(batch)[0]
    pruned, _ = run(traced("llama"), PRUNED.rpartition(" | ")[0])
    boosted, _ = run(traced("llama"), PRUNED)
    assert (boosted.run(batch)[0] - dense).norm() < (pruned.run(batch)[0] - dense).norm()


def test_both_factors_learn_with_the_weights(traced, text):
    program, _ = run(traced("llama"), PRUNED)
    before = {path: value.detach().clone() for path, value in program.tensors()}
    run(program, "train{steps=3 masks=every{steps=2} decay=ars-ste}", text)
    for one in slorbs(program):
        assert not torch.equal(program.tensor(one.a), before[one.a])
        assert not torch.equal(program.tensor(one.b), before[one.b])


def test_the_branch_stays_at_export(traced, text, tmp_path):
    program, _ = run(traced("llama"), f"{PRUNED} | train{{steps=3}} | fold-masks", text)
    paths = export(program, tmp_path / "out", ["onnx", "safetensors"])
    assert (paths["onnx"] / "model.onnx").is_file()  # read back and compared by the engine
    assert "slorb" in program.features


def test_passes_leave_the_branch_alone_unless_it_is_named(traced):
    program, _ = run(traced("llama"), f"{PRUNED} | fold-masks")
    named = program.clone()
    run(program, "insert-masks")
    assert not any("slorb" in view.weight for view in linears(program) if view.mask)
    run(named, "insert-masks{targets=*_slorb_s}")
    assert all("slorb" in view.weight for view in linears(named) if view.mask)


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        ("insert-masks | insert-slorb{k=7}", "k=7 does not divide the"),
        ("insert-masks{targets=*q_proj*} | insert-slorb{k=4 targets=*down_proj*}", "has a mask"),
    ],
)
def test_a_branch_that_cannot_be_is_refused(pipeline, sentence, traced):
    with pytest.raises(OptionError) as caught:
        run(traced("llama"), pipeline)
    assert sentence in str(caught.value)
