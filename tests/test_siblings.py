"""Siblings that are none, or hardly: what fusing refuses, and rows that none of them has changed."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, SparsifyError
from sparsify.fusion import Fusion, fuse
from sparsify.tensors.siblings import branch
from tests.test_fusion import outputs, sibling, small


@pytest.mark.parametrize(
    "steps",
    [
        "insert-lora{rank=2}",
        "insert-masks | choose-masks{sparsity=0.5}",
        "insert-quantizers{values=int8} | choose-scales | pack-dense",
        "insert-adapters{ratio=0.2}",
    ],
)
def test_what_passes_put_around_a_weight_is_not_lost(steps, traced):
    """A branch, mask or rounding of a sibling would be left out in silence."""
    base = traced("llama")
    held = parse(steps).run(base.clone(), Context())
    with pytest.raises(SparsifyError, match=r"sibling 1 holds .*, which fusing would lose"):
        fuse(base, [held])
    with pytest.raises(SparsifyError, match=r"the base holds .*, which fusing would lose"):
        fuse(held, [held.clone()])


def test_siblings_that_are_no_numbers_or_of_another_type():
    base = small()
    other = sibling(base, 1)
    for path in ("up.weight", "up.bias"):
        broken = other.clone()
        broken.tensor(path).data.flatten()[0] = float("nan")
        with pytest.raises(SparsifyError, match=f"'{path}' of sibling 1 has 1 of"):
            fuse(base, [broken], Fusion(others="mean"))
    single = other.clone()
    single.put("up.weight", other.tensor("up.weight").detach().float(), trainable=True)
    with pytest.raises(
        SparsifyError, match=r"is torch.float64 in the base and torch.float32 in it"
    ):
        fuse(base, [single])


def test_a_sibling_of_a_bias_alone_draws_no_token():
    """Nothing of an input lies in directions that it has not changed: the other one serves every row."""
    base = small()
    biased, other = base.clone(), sibling(base, 2, {"up.weight"})
    with torch.no_grad():
        biased.tensor("up.bias").add_(1.0)
    made = fuse(base, [biased, other], Fusion(rank=None))
    router = made.tensor("up.weight_experts_router").detach()
    assert torch.equal(router[:8], torch.zeros(8, 12, dtype=torch.float64))
    assert bool((router[8:].norm(dim=1) > 0.99).all())
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    assert torch.allclose(outputs(made, x), outputs(other, x), atol=1e-12)


def test_rows_of_a_router_end_with_the_rank():
    draw = torch.Generator().manual_seed(0)
    base, low, high = (torch.randn(*s, generator=draw) for s in ((20, 30), (20, 3), (3, 30)))
    router = branch(base.double(), (base + low @ high).double(), None, 8).router
    exact = branch(torch.zeros(20, 30), low @ high, None, 8).router
    for rows in (router, exact):
        assert torch.allclose(rows.norm(dim=1)[:3], torch.ones(3, dtype=rows.dtype))
    assert torch.equal(exact[3:], torch.zeros(5, 30))


def test_rows_of_zeros_have_a_gradient():
    """Padding often enters as zeros, where the root of an energy has no slope."""
    base = small()
    made = fuse(base, [sibling(base, 1), sibling(base, 2)], Fusion(rank=4, gate=2, top=2))
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    x[0, 2:] = 0
    made.module(x)[0].square().sum().backward()
    gradients = {path: value.grad for path, value in made.module.named_parameters()}
    assert float(gradients["up.weight_experts_router"].abs().max()) > 0
    assert all(bool(value.isfinite().all()) for value in gradients.values())


def test_a_router_that_sees_everything_tells_nothing(traced):
    base = traced("llama")
    with pytest.raises(
        OptionError, match=r"gate=64 looks at all 64 directions of the input of '.*'"
    ):
        fuse(base, [sibling(base, 1), sibling(base, 2)], Fusion(rank=4, gate=64))
    fuse(base, [sibling(base, 1)], Fusion(rank=4, gate=64))  # one sibling needs no choice
