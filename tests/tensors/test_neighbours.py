"""The arithmetic of a store: R1 to R4 of the reference, against sums written out by hand."""

import math

import pytest
import torch

from sparsify.tensors.neighbours import (
    best_share,
    mixed,
    neighbour_weights,
    retrieved,
    similarities,
)

Q = torch.tensor([[1.0, 0.0]])
K = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
V = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
STUDENT = torch.tensor([[0.3, 0.7]])


def found(q, keys, values, k, tau, cosine=False, classes=2):
    s = similarities(q, keys, cosine=cosine)
    return retrieved(neighbour_weights(s, torch.tensor(tau), k), values, classes)


def mix(p, r, c):
    return mixed(p.log(), r, torch.tensor(c)).exp()


def drawn(rows=40, width=6, classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, width, generator=g)
    values = torch.randn(rows, classes, generator=g).softmax(-1)
    return torch.randn(7, width, generator=g), keys, values


def test_the_hand_example_to_five_digits():
    """R1: q.K = 1, .6, 0, -1; softmax(2, 1.2) = .68997, .31003; p = .45599, .54401."""
    r = found(Q, K, V, 2, 0.5)
    assert r[0].tolist() == pytest.approx([0.68997, 0.31003], abs=5e-6)
    assert mix(STUDENT, r, 0.4)[0].tolist() == pytest.approx([0.45599, 0.54401], abs=5e-6)
    ids = found(Q, K, V.argmax(1), 2, 0.5)
    assert torch.equal(ids, r)


def test_no_share_is_the_very_logits_and_all_of_it_the_row():
    """R2: bit for bit, whatever the store says; c = 1, k = 1 gives a stored key's own row."""
    q, keys, values = drawn()
    logits = 9 * torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    r = found(q, keys, values, 3, 0.1, classes=5)
    assert torch.equal(mixed(logits, r, torch.tensor(0.0)), logits)
    assert not torch.allclose(mixed(logits, r, torch.tensor(0.1)), logits)
    unit = torch.nn.functional.normalize(keys, dim=-1)
    row = found(5 * unit, unit, values, 1, 0.1, cosine=True, classes=5)
    assert torch.equal(row, values)
    assert torch.allclose(mix(torch.full((40, 5), 0.2), row, 1.0), values, rtol=1e-6)


def test_temperatures_at_their_ends():
    """R3: k = N and a high temperature give the mean of V, a low one the nearest row; rows sum to 1."""
    q, keys, values = drawn()
    hot = found(q, keys, values, 40, 1e12, classes=5)
    assert torch.allclose(hot, values.mean(0).expand(7, 5), atol=1e-6)
    cold = found(q, keys, values, 40, 1e-12, classes=5)
    assert torch.equal(cold, values[(q @ keys.t()).argmax(-1)])
    for k, tau in ((1, 1.0), (3, 0.3), (40, 2.0)):
        r = found(q, keys, values, k, tau, classes=5)
        assert torch.allclose(r.sum(-1), torch.ones(7), atol=1e-6)
        p = mix(torch.full((7, 5), 0.2), r, 0.3)
        assert torch.allclose(p.sum(-1), torch.ones(7), atol=1e-6)


def test_only_k_rows_answer():
    q, keys, values = drawn()
    s = q @ keys.t()
    best = s.topk(3)
    byhand = torch.stack(
        [w @ values[i] for w, i in zip((best.values / 0.7).softmax(-1), best.indices, strict=True)]
    )
    assert torch.allclose(found(q, keys, values, 3, 0.7, classes=5), byhand, atol=1e-6)
    assert not torch.allclose(found(q, keys, values, 4, 0.7, classes=5), byhand, atol=1e-4)


def test_the_order_of_rows_is_nothing_and_a_double_counts_twice():
    """R4."""
    q, keys, values = drawn()
    turn = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    plain = found(q, keys, values, 5, 0.5, classes=5)
    assert torch.allclose(found(q, keys[turn], values[turn], 5, 0.5, classes=5), plain, atol=1e-6)
    ids = values.argmax(1)
    plain = found(q, keys, ids, 5, 0.5, classes=5)
    assert torch.allclose(found(q, keys[turn], ids[turn], 5, 0.5, classes=5), plain, atol=1e-6)
    twice = found(Q, torch.cat([K, K[:1]]), torch.cat([V, V[:1]]), 3, 0.5)
    weight = 2 * math.exp(2) / (2 * math.exp(2) + math.exp(1.2))
    assert twice[0, 0].item() == pytest.approx(weight, abs=1e-6)


def test_rows_as_near_as_the_last_are_of_the_same_rank():
    """R4: no order decides among equals, and no last digit: all of them answer."""
    keys = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.5, -1.0], [0.5 - 1e-7, 3.0], [0.4, 0.0]])
    values = torch.tensor([0, 1, 2, 3, 4])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        r = found(Q, keys[order], values[order], 2, 1.0, classes=5)[0]
        assert r[4] == 0
        assert torch.allclose(r[1:4], r[1].expand(3), atol=1e-6)
        assert r[0].item() == pytest.approx(1 / (1 + 3 * math.exp(-0.5)), abs=1e-6)


def test_cosine_asks_for_directions():
    q, keys, values = drawn()
    unit = torch.nn.functional.normalize(keys, dim=-1)
    one = found(q, unit, values, 4, 0.2, cosine=True, classes=5)
    assert torch.allclose(
        found(3 * q, unit, values, 4, 0.2, cosine=True, classes=5), one, atol=1e-6
    )
    assert not torch.allclose(found(3 * q, keys, values, 4, 0.2, classes=5), one, atol=1e-3)
    assert torch.isfinite(found(0 * q, unit, values, 4, 0.2, cosine=True, classes=5)).all()


def test_logits_stay_finite_and_have_gradients():
    logits = torch.tensor([[400.0, 0.0, -400.0]], requires_grad=True)
    for c in (0.0, 0.3, 1.0):
        out = mixed(logits, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor(c))
        assert torch.isfinite(out).all()
        (slope,) = torch.autograd.grad(out.sum(), logits)
        assert torch.isfinite(slope).all()
        assert out.exp().sum().item() == pytest.approx(1.0, abs=1e-5) or c == 0.0


def test_the_share_of_least_cross_entropy():
    model = torch.tensor([[0.9], [0.1], [0.2]])
    store = torch.tensor([[0.1], [0.6], [0.5]])
    target = torch.ones(3, 1)
    c, loss = best_share(model, store, target)
    grid = [i / 10000 for i in range(10001)]
    losses = [
        -sum(math.log((1 - g) * m + g * s) for m, s in ((0.9, 0.1), (0.1, 0.6), (0.2, 0.5))) / 3
        for g in grid
    ]
    assert loss == pytest.approx(min(losses), abs=1e-6)
    assert c == pytest.approx(grid[losses.index(min(losses))], abs=2e-4)
    assert best_share(model, model / 2, target) == (0.0, best_share(model, model, target)[1])
    assert best_share(model / 2, model, target)[0] == 1.0
    assert best_share(model, store, target, 0.25)[0] == 0.25
