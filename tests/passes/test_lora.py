import pytest
import torch
from torch import nn

from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears, out_in

CHOICE = "insert-masks | choose-masks{pattern=2:4}"
TRAIN = "insert-lora{rank=4} | train{steps=6 batch=8 lr=0.01 update=lora}"


def run(program, pipeline, data=None, seed=0):
    return parse(pipeline).run(program, Context(data=data, seed=seed))


def batch_of(program, text):
    return {k: v for k, v in text.batch([5, 6, 7]).items() if k in program.sample}


def draw(program):
    """Branches as if they had been trained."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith("_lora_b"):
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))


def zeros(program, masks):
    """Zeros of the weights that were pruned, and how many they should be."""
    found = sum(int((program.tensor(path) == 0).sum()) for path in masks)
    return found, sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_branch_under_the_mask_folds_without_losing_a_zero(family, traced, text):
    """And the control: beside plain zeros the same training, folded, loses them."""
    under = run(traced(family), CHOICE, text)
    masks = {v.weight: under.tensor(v.mask).clone() for v in linears(under) if v.mask}
    beside = run(under.clone(), "fold-masks")
    assert zeros(beside, masks) == (zeros(beside, masks)[1],) * 2
    pruned_only = count(beside)

    for program in (under, beside):
        run(program, TRAIN, text)
    unfolded = under.run(batch_of(under, text))[0]
    run(under, "fold-lora | fold-masks")
    run(beside, "fold-lora")

    kept, wanted = zeros(under, masks)
    assert kept == wanted
    for path, mask in masks.items():
        assert not bool(under.tensor(path)[~mask].any()), path
        assert bool(under.tensor(path)[mask].all()), path
    folded = under.run(batch_of(under, text))[0]
    assert float((folded - unfolded).abs().max()) <= 1e-4 * max(1.0, float(unfolded.abs().max()))
    assert zeros(beside, masks)[0] < 0.01 * wanted
    # Graph, parameters, zeros, bytes and multiply-adds are those of the model that was only pruned.
    assert to_text(under) == to_text(traced(family))
    assert count(under) == pruned_only


def test_the_branch_starts_at_nothing_and_in_the_right_layout(traced):
    program = run(traced("gpt2"), "insert-lora{rank=3 alpha=6 targets=*c_attn,*c_fc}")
    branched = [v for v in linears(program) if v.branch]
    assert len(branched) == 4
    for view in branched:
        a, b = program.tensor(view.branch.a), program.tensor(view.branch.b)
        outputs, inputs = out_in(view, program.tensor(view.weight)).shape
        assert (a.shape, b.shape) == ((3, inputs), (outputs, 3))
        assert bool(a.all())
        assert not bool(b.any())
        assert view.branch.scale == 2.0
    first, second = branched[0].branch.a, branched[2].branch.a
    assert not torch.equal(program.tensor(first), program.tensor(second))


@pytest.mark.parametrize("name", ["gpt2", "mlp"])
def test_folding_adds_the_scaled_product(name, traced):
    program = run(traced(name), "insert-lora{rank=2 alpha=6}")
    draw(program)
    wanted = {}
    for view in linears(program):
        if view.branch:
            product = program.tensor(view.branch.b) @ program.tensor(view.branch.a)
            wanted[view.weight] = program.tensor(view.weight) + 3.0 * out_in(view, product)
    run(program, "fold-lora")
    for path, value in wanted.items():
        assert torch.allclose(program.tensor(path), value, atol=1e-6), path


class Shared(nn.Module):
    """One linear used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.inner(torch.tanh(self.inner(x))))


@pytest.mark.parametrize(
    "pipeline",
    [
        "insert-lora{rank=2} | | fold-lora",
        "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=2} | | fold-lora | fold-masks",
        "insert-lora{rank=2} | insert-masks | choose-masks{pattern=2:4} | | fold-lora | fold-masks",
    ],
)
def test_shared_weights_have_one_branch_and_one_mask(pipeline):
    torch.manual_seed(0)
    program = trace(Shared(), {"x": torch.randn(2, 3, 8)}, {"x": {0: "batch", 1: "length"}})
    before = to_text(program)
    insert, fold = pipeline.split(" | | ")
    run(program, insert)
    draw(program)
    uses = [v for v in linears(program) if v.weight == "inner.weight"]
    assert len(uses) == 2
    assert len({(v.mask, v.branch.a) for v in uses}) == 1
    assert len([path for path, _ in program.tensors() if path.endswith("_lora_a")]) == 1
    outputs = program.run()[0]
    run(program, fold)
    assert torch.allclose(program.run()[0], outputs, atol=1e-5)
    assert to_text(program) == before


def test_masks_after_the_branch_stand_above_it(traced):
    one = run(traced("mlp"), "insert-lora{rank=2} | insert-masks")
    two = run(traced("mlp"), "insert-masks | insert-lora{rank=2}")
    for program in (one, two):
        draw(program)
        with torch.no_grad():
            program.tensor("up.weight_mask")[:, ::2] = False
    assert torch.allclose(one.run()[0], two.run()[0], atol=1e-6)
    run(one, "fold-lora | fold-masks")
    assert not bool(one.tensor("up.weight")[:, ::2].any())


@pytest.mark.parametrize("step", ["insert-lora{rank=2 targets=head}", "insert-masks{targets=head}"])
def test_tied_embeddings_are_refused(step, traced):
    with pytest.raises(OptionError) as caught:
        run(traced("block"), step)
    assert str(caught.value) == (
        f"pass 1 of 1, '{step}', @head.weight is no weight of linears alone (a tied embedding?), so "
        "that a mask or branch on it could not be folded; leave it out of targets"
    )
    run(traced("mlp"), step)
