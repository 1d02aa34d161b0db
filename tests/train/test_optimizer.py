"""The optimiser of masked weights: signs, moments, and plain AdamW where there is no mask."""

from itertools import pairwise

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.options import AdamS, ArsSte, Pull, SrSte


class WrongSign(ArsSte):
    """Pushes masked weights away from zero, as an integer mask complemented bit by bit does."""

    def momentum(self, moment, weight, mask, progress):
        return 2 * moment - super().momentum(moment, weight, mask, progress)


def matrix(seed=0):
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randn(8, 16, generator=draw)
    weight = torch.nn.Parameter(drawn + 0.2 * drawn.sign())  # too far from zero to step over it
    return weight, torch.rand(8, 16, generator=draw) < 0.5


def stepped(rule, gradients, *, seed=0, lr=0.01, progress=0.5, decay=0.0):
    weight, mask = matrix(seed)
    optimizer = SparseAdamW([weight], rule, lr=lr, weight_decay=decay)
    optimizer.masks, optimizer.progress = {weight: mask}, progress
    history = [weight.detach().clone()]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        history.append(weight.detach().clone())
    return weight, mask, optimizer.state[weight], history


def decays(rule):
    """Whether masked weights come down, strictly, and kept ones stay, when the loss has no gradient."""
    _, mask, _, history = stepped(rule, [torch.zeros(8, 16)] * 10, lr=1e-3)
    falls = all(bool((new[~mask].abs() < old[~mask].abs()).all()) for old, new in pairwise(history))
    return falls and torch.equal(history[0][mask], history[-1][mask])


@pytest.mark.parametrize("rule", [ArsSte(), SrSte(), AdamS()])
def test_masked_weights_fall_and_kept_ones_stay_without_a_gradient(rule):
    assert decays(rule)


def test_the_sign_test_finds_a_wrong_sign():
    assert not decays(WrongSign())
    assert not decays(Pull())


@pytest.mark.parametrize("peak", [0.0, 0.5])
def test_the_first_moment_is_of_the_raw_gradient_and_the_second_of_what_steps(peak):
    draw = torch.Generator().manual_seed(4)
    gradients = [torch.randn(8, 16, generator=draw) for _ in range(6)]
    weight, mask, state, history = stepped(ArsSte(peak=peak, ramp=0.0), gradients)
    moment, square = torch.zeros(8, 16), torch.zeros(8, 16)
    for gradient, before in zip(gradients, history, strict=False):
        moment = 0.9 * moment + 0.1 * gradient
        moved = moment + peak * (~mask) * before
        square = 0.95 * square + 0.05 * moved**2
    assert torch.allclose(state["moment"], moment, atol=1e-6)
    assert torch.allclose(state["square"], square, atol=1e-6)
    step = 0.01 * (moved / (1 - 0.9**6)) / ((square / (1 - 0.95**6)).sqrt() + 1e-8)
    assert torch.allclose(weight, history[-2] - step, atol=1e-6)


def test_sr_ste_pulls_inside_the_gradient():
    draw = torch.Generator().manual_seed(4)
    gradient = torch.randn(8, 16, generator=draw)
    _, mask, state, history = stepped(SrSte(peak=0.3), [gradient])
    assert torch.allclose(state["moment"], 0.1 * (gradient + 0.3 * (~mask) * history[0]), atol=1e-6)


def test_without_a_mask_it_is_adamw():
    draw = torch.Generator().manual_seed(4)
    gradients = [torch.randn(8, 16, generator=draw) for _ in range(5)]
    one, two = (torch.nn.Parameter(torch.ones(8, 16)) for _ in range(2))
    ours = SparseAdamW([one], ArsSte(), lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW([two], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for gradient in gradients:
        one.grad, two.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    assert torch.allclose(one, two, atol=1e-7)


def test_weight_decay_is_for_matrices_only():
    vector = torch.nn.Parameter(torch.ones(4))
    optimizer = SparseAdamW([vector], Pull(), lr=0.1, weight_decay=0.5)
    vector.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(vector, torch.ones(4))


def test_the_typical_step_is_four_times_that_of_adam_under_noise():
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(8, 16, generator=draw) for _ in range(400)]
    _, _, _, history = stepped(Pull(), gradients, lr=1e-3)
    plain = torch.nn.Parameter(torch.zeros(8, 16))
    adam = torch.optim.AdamW([plain], lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95))
    steps = []
    for gradient in gradients:
        before = plain.detach().clone()
        plain.grad = gradient.clone()
        adam.step()
        steps.append((plain.detach() - before).abs().mean())
    ours = torch.stack([(b - a).abs().mean() for a, b in pairwise(history[200:])])
    ratio = float(ours.mean() / torch.stack(steps[200:]).mean())
    assert ratio == pytest.approx(((1 + 0.9) / (1 - 0.9)) ** 0.5, rel=0.06)


def test_masked_weights_in_half_precision_are_refused():
    weight = torch.nn.Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    optimizer = SparseAdamW([weight], AdamS(), lr=0.1)
    optimizer.masks = {weight: torch.ones(2, 4, dtype=torch.bool)}
    weight.grad = torch.ones_like(weight)
    with pytest.raises(
        SparsifyError, match=r"\[2, 4\] is torch.bfloat16; adaptive masks need float32"
    ):
        optimizer.step()
