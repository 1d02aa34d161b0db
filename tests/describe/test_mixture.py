"""The formulas of the study of mixtures against its figures, simulations and sums done by hand."""

import re
from pathlib import Path

import pytest
import torch

from sparsify.describe.mixture import (
    Shape,
    capacity,
    dropped,
    expert_parameters,
    forward_multiply_adds,
    other_parameters,
    speed_up,
    total_parameters,
    touched_experts,
    training_flops,
)
from sparsify.errors import OptionError

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
TOKENS = 300e9
SIZES = {
    "125M": (12, 768), "355M": (24, 1024), "1.3B": (24, 2048), "2.7B": (32, 2560),
    "6.7B": (32, 4096), "13B": (40, 5120),
}  # fmt: skip
MIXED = {"15B": "125M", "52B": "355M", "207B": "1.3B", "1.1T": "6.7B"}


def dense(name):
    return Shape(*SIZES[name])


def mixture(name):
    return Shape(*SIZES[name], experts=512)


def training_ratio(name):
    return training_flops(mixture(name), TOKENS) / training_flops(dense(name), TOKENS)


def forward_ratio(name, **counted):
    return forward_multiply_adds(mixture(name), **counted) / forward_multiply_adds(
        dense(name), **counted
    )


@pytest.mark.parametrize(
    ("name", "zettaflops"),
    [("125M", 0.364), ("355M", 1.059), ("1.3B", 3.568), ("2.7B", 7.077), ("6.7B", 17.121),
     ("13B", 32.675)],
)  # fmt: skip
def test_training_of_dense_models(name, zettaflops):
    assert round(training_flops(dense(name), TOKENS) / 1e21, 3) == zettaflops


@pytest.mark.parametrize(
    ("name", "zettaflops", "ratio"),
    [("125M", 0.432, 1.187), ("355M", 1.301, 1.228), ("1.3B", 4.534, 1.271),
     ("6.7B", 22.275, 1.301)],
)  # fmt: skip
def test_training_of_mixtures(name, zettaflops, ratio):
    assert round(training_flops(mixture(name), TOKENS) / 1e21, 3) == zettaflops
    assert round(training_ratio(name), 3) == ratio


@pytest.mark.parametrize(
    ("counted", "ratios"),
    [
        ({}, (1.199, 1.249, 1.285, 1.310)),
        ({"causal": False}, (1.176, 1.222, 1.266, 1.299)),
        ({"logits": False}, (1.273, 1.286, 1.308, 1.320)),
    ],
)
def test_forwards_have_ratios_of_their_own(counted, ratios):
    found = tuple(round(forward_ratio(name, **counted), 3) for name in MIXED.values())
    assert found == ratios
    assert all(round(training_ratio(n), 3) != r for n, r in zip(MIXED.values(), found, strict=True))


def test_parameters_of_a_logged_model_to_the_last_one():
    shape = Shape(24, 2048, vocabulary=50_000, experts=8)
    assert expert_parameters(shape) == 402_776_064
    assert other_parameters(shape) == 908_423_168
    assert total_parameters(shape) == 908_423_168 + 8 * 402_776_064
    plain = Shape(24, 2048, vocabulary=50_000)
    assert total_parameters(plain) == 908_423_168 - 12 * 8 * 2048 + 402_776_064


def test_sizes_of_the_studied_mixtures():
    """Experts alone to the digits known; the whole within 1 % of its name, which for 15B is rounded up."""
    billions = [512 * 8 * h**2 * layers / 2 / 1e9 for layers, h in map(SIZES.get, MIXED.values())]
    assert [round(n, 2) for n in billions] == [14.50, 51.54, 206.16, 1099.51]
    whole = {name: total_parameters(mixture(of)) / 1e9 for name, of in MIXED.items()}
    for name, named in (("52B", 52), ("207B", 207), ("1.1T", 1100)):
        assert whole[name] == pytest.approx(named, rel=0.01)
    assert round(whole["15B"], 1) == 14.6
    for name, count in zip(MIXED, billions, strict=True):
        of_experts = 512 * expert_parameters(mixture(MIXED[name])) / 1e9
        assert of_experts == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(("tokens", "experts"), [(1, 2.0), (16, 31.1), (256, 324.0), (2048, 511.8)])
def test_touched_experts_against_drawing_them(tokens, experts):
    found = touched_experts(512, 2, tokens)
    assert round(found, 1) == experts
    generator = torch.Generator().manual_seed(11)
    drawn = []
    for _ in range(40):
        reached = torch.rand(tokens, 512, generator=generator).topk(2, dim=1).indices
        drawn.append(reached.unique().numel())
    assert sum(drawn) / len(drawn) == pytest.approx(found, rel=0.02)


def test_a_router_that_prefers_some_reaches_fewer():
    scores = torch.rand(256, 512, generator=torch.Generator().manual_seed(11))
    reached = (scores + torch.linspace(0, 1, 512)).topk(2, dim=1).indices.unique().numel()
    assert reached < 0.8 * touched_experts(512, 2, 256)


@pytest.mark.parametrize(("experts", "chosen", "tokens"), [(4, 5, 1), (4, 0, 1), (4, 2, -1)])
def test_choices_that_cannot_be_made(experts, chosen, tokens):
    with pytest.raises(OptionError, match="cannot be sent"):
        touched_experts(experts, chosen, tokens)
    with pytest.raises(OptionError, match="gives no places"):
        capacity(tokens, 0)


def test_places_and_what_is_dropped():
    places = capacity(16, 4)
    assert places == 8
    assert dropped([10, 2, 2, 2], places) == 2
    assert dropped([8, 8, 0, 0], places) == 0
    assert capacity(17, 4) == 9
    assert capacity(16, 4, factor=1) == 4


class TestSpeedUp:
    dense = ((1, 3.0), (4, 2.6))
    mixture = ((1, 2.6), (4, 2.3))

    def test_at_a_point_of_both(self):
        assert speed_up(self.dense, self.mixture, 2.6) == pytest.approx(4.0)

    def test_between_points_compute_goes_by_its_log(self):
        denser = ((1, 3.0), (4, 2.6), (16, 2.2))
        # Half way from 2.6 to 2.2: 4 * 2; a third of the way from 2.6 to 2.3: 4 ** (2 / 3).
        assert speed_up(denser, self.mixture, 2.4) == pytest.approx(8 / 4 ** (2 / 3))

    def test_outside_of_a_curve_nothing_is_made_up(self):
        words = r"loss 2.8 lies outside the mixture's curve, measured from 2.3 to 2.6"
        with pytest.raises(OptionError, match=words):
            speed_up(self.dense, self.mixture, 2.8)
        with pytest.raises(OptionError, match="outside the dense curve"):
            speed_up(self.dense, self.mixture, 2.4)
        with pytest.raises(OptionError, match="nowhere"):
            speed_up((), self.mixture, 2.4)

    def test_curves_that_do_not_fall_are_refused(self):
        with pytest.raises(OptionError, match="does not fall"):
            speed_up(((1, 3.0), (4, 3.1)), self.mixture, 2.6)
        with pytest.raises(OptionError, match="a compute of 0"):
            speed_up(((0, 3.0), (4, 2.1)), self.mixture, 2.6)


def rows(title):
    """The cells of the first table under a heading of the page, its first line left out."""
    part = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines[2:]]


def test_the_page_has_the_training_that_the_formula_gives():
    found = rows("The study's table: training")
    assert [row[0] for row in found] == list(SIZES)
    of = {plain: name for name, plain in MIXED.items()}
    for name, layers, width, plain, mixed, flops, ratio in found:
        assert (int(layers), int(width)) == SIZES[name]
        assert f"{training_flops(dense(name), TOKENS) / 1e21:.3f}" == plain
        assert mixed == of.get(name, "-")
        if mixed == "-":
            assert flops == ratio == "-"
        else:
            assert f"{training_flops(mixture(name), TOKENS) / 1e21:.3f}" == flops
            assert f"{training_ratio(name):.3f}" == ratio


def test_the_page_has_the_forward_that_the_formula_gives():
    found = rows("The same shapes: forward")
    assert [row[0] for row in found] == list(MIXED)
    for name, plain, mixed, ratio in found:
        of = MIXED[name]
        assert f"{forward_multiply_adds(dense(of)) / 1e9:.3f}" == plain
        assert f"{forward_multiply_adds(mixture(of)) / 1e9:.3f}" == mixed
        assert f"{forward_ratio(of):.3f}" == ratio


def test_the_page_has_the_parameters_and_touched_experts():
    found = rows("Parameters and experts touched")
    assert [row[0] for row in found] == list(MIXED)
    for name, experts, others, *touched in found:
        shape = mixture(MIXED[name])
        assert f"{512 * expert_parameters(shape) / 1e9:.2f}" == experts
        assert f"{other_parameters(shape) / 1e9:.2f}" == others
        assert touched == [f"{touched_experts(512, 2, n):.1f}" for n in (1, 16, 256, 2048)]
