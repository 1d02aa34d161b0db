"""Losses chunk by chunk behind the head against losses of whole logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import run_to
from sparsify.ir.trace.trace import trace
from sparsify.train import chunks
from sparsify.train.chunks import Side, Terms, chunked_loss
from sparsify.train.options import Kl


class Capped(nn.Module):
    """Logits with a bias and a soft cap; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(13, 8), nn.Linear(8, 8), nn.Linear(8, 13)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return torch.tanh(self.head(self.mix(self.embed(input_ids))) / 2.0) * 2.0


def traced_capped(seed):
    torch.manual_seed(seed)
    ids = torch.arange(10).reshape(2, 5)
    return trace(Capped(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


@pytest.fixture(params=[(1 << 24, 1 << 20), (60, 30)], ids=["one chunk", "many chunks"])
def sizes(request, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK", {"cpu": request.param[0]})
    monkeypatch.setattr(chunks, "_BLOCK", {"cpu": request.param[1]})


def values(program, ids):
    head = find_head(program)
    x, weight, bias = run_to(program.module, {"input_ids": ids}, head.reads)
    return Side(head, x.flatten(0, 1), weight, bias)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("parts", ["task", "distance", "both"])
def test_value_and_gradients_are_those_of_whole_logits(parts, temperature, sizes):
    program, dense = traced_capped(0), traced_capped(1)
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 13, (3, 7), generator=draw)
    labels = torch.randint(0, 13, (21,), generator=draw)
    labels[[2, 9, 20]] = -100
    c = torch.rand(21, generator=draw) * (torch.rand(21, generator=draw) > 0.3)
    distance = Kl(weight=0.7, temperature=temperature)
    teacher = None if parts == "task" else values(dense, ids)
    terms = Terms(
        labels if parts != "distance" else None,
        0.3,
        distance if teacher is not None else None,
        teacher,
        c,
        None,
    )
    total, task, distilled = chunked_loss(values(program, ids), terms)
    total.backward()
    gradients = {path: p.grad.clone() for path, p in program.module.named_parameters()}
    program.module.zero_grad()

    logits = program.module(ids)[0].flatten(0, 1)
    wanted = logits.new_zeros(())
    if terms.labels is not None:
        one = 0.3 * functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        assert torch.allclose(task, one, rtol=1e-5)
        wanted = wanted + one
    if teacher is not None:
        p = (dense.run({"input_ids": ids})[0].flatten(0, 1) / temperature).softmax(-1)
        q = (logits / temperature).softmax(-1)
        two = 0.7 * temperature**2 * ((p * (p / q).log()).sum(-1) * c).sum()
        assert torch.allclose(distilled, two, rtol=1e-4)
        wanted = wanted + two
    assert torch.allclose(total, wanted, rtol=1e-5)
    (3.0 * wanted).backward()
    for path, value in program.module.named_parameters():
        assert torch.allclose(3.0 * gradients[path], value.grad, rtol=1e-4, atol=1e-6), path


def test_the_gradient_is_scaled_by_what_comes_back(sizes):
    program, ids = traced_capped(0), torch.arange(8).reshape(2, 4)
    found = []
    for scale in (1.0, 0.25):
        terms = Terms(ids.flatten(), 1.0, None, None, None, None)
        (scale * chunked_loss(values(program, ids), terms)[0]).backward()
        found.append(program.tensor("head.weight").grad.clone())
        program.module.zero_grad()
    assert torch.allclose(0.25 * found[0], found[1], rtol=1e-6)


def test_in_bfloat16_the_loss_stays_float32_and_near(sizes):
    program, ids = traced_capped(0), torch.arange(12).reshape(2, 6)
    found = []
    for dtype in (None, torch.bfloat16):
        total, *_ = chunked_loss(
            values(program, ids), Terms(ids.flatten(), 1 / 12, None, None, None, dtype)
        )
        total.backward()
        assert total.dtype == torch.float32
        found.append((float(total.detach()), program.tensor("head.weight").grad.clone()))
        program.module.zero_grad()
    (one, exact), (two, rounded) = found
    assert two == pytest.approx(one, rel=1e-2)
    assert float((exact - rounded).norm() / exact.norm()) < 2e-2


def test_without_gradients_only_the_value_is_made(sizes):
    program, ids = traced_capped(0), torch.arange(12).reshape(2, 6)
    terms = Terms(ids.flatten(), 1.0, None, None, None, None)
    with torch.no_grad():
        total, *_ = chunked_loss(values(program, ids), terms)
    assert not total.requires_grad
    logits = program.run({"input_ids": ids})[0].flatten(0, 1)
    wanted = functional.cross_entropy(logits, ids.flatten(), reduction="sum")
    assert torch.allclose(total, wanted, rtol=1e-5)
