"""Masks that let a token see what comes after it are told from those that do not."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sparsify.ir.decode.variant import decoder
from sparsify.ir.facts.causal import masks_bar_future, masks_bar_past
from sparsify.ir.trace.trace import trace
from tests.ir.axes.families import FAMILIES

LENGTH = 6


class Attends(nn.Module):
    """`x [batch, length, 8]`, two heads, with a mask of some form."""

    def __init__(self, form):
        super().__init__()
        self.q, self.form = nn.Linear(8, 8), form

    def forward(self, x):
        q = self.q(x).view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)
        places = torch.arange(x.shape[1])
        seen = places[None, :] <= places[:, None] + (self.form == "future")
        if self.form == "window":
            seen = seen & (places[None, :] > places[:, None] - 3)
        if self.form == "added":
            seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        mask = None if self.form == "none" else seen
        return scaled_dot_product_attention(q, q, q, mask)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("causal", True), ("window", True), ("added", True), ("future", False), ("none", False)],
)
def test_masks(form, wanted):
    x = torch.randn(2, LENGTH, 8)
    assert masks_bar_future(trace(Attends(form).eval(), {"x": x}, {"x": {0: "batch"}})) is wanted


def test_programs_without_attention():
    assert not masks_bar_future(trace(nn.Linear(4, 4), {"input": torch.randn(2, 4)}))


@pytest.fixture(scope="module")
def windowed():
    return decoder(trace(FAMILIES["mistral"]().eval()))


@pytest.mark.parametrize(("length", "wanted"), [(1, False), (8, False), (9, True), (200, True)])
def test_a_window_is_met_behind_its_last_place(windowed, length, wanted):
    """Mistral's window of the tests has eight places, the token's own among them."""
    assert masks_bar_past(windowed, length) is wanted


def test_all_of_the_past_is_seen(traced):
    assert not masks_bar_past(decoder(traced("llama")), 128)
