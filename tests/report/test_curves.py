"""Curves of a training: ticks, points, and what is left out."""

import re

import pytest

from sparsify.report.curves import curves, thinned, ticks


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (2.1, 3.9, [2, 2.5, 3, 3.5, 4]),
        (0, 1, [0, 0.5, 1]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-0.5, 0, 0.5]),
        (1e-6, 4e-6, [1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, marks):
    found = ticks(low, high)
    assert found == pytest.approx(marks)
    assert found[0] <= low
    assert found[-1] >= high


def test_many_points_become_means_of_neighbours():
    points = [(place, float(place)) for place in range(1000)]
    few = thinned(points)
    assert len(few) == 250
    assert few[0] == (1.5, 1.5)
    assert sum(y for _, y in few) / 250 == pytest.approx(499.5)
    assert thinned(points[:5]) == points[:5]


def test_a_panel_a_quantity_with_its_last_value():
    rows = [
        {"step": 1, "loss": 3.0, "task": 3.0, "lr": 0.5, "strength": 0.0},
        {"step": 2, "loss": 1.0, "task": 1.0, "lr": 0.25, "strength": 0.0, "flips": 0.5},
    ]
    text = curves(rows)
    assert re.findall("<b>(.*?)</b>", text) == [
        "loss, nats a token",
        "learning rate",
        "masks, share changed",
    ]
    assert re.findall('key c.">(.*?)<', text) == ["loss 1", "lr 0.25", "flips 0.5"]
    assert 'd="M0.0,0.0 1000.0,400.0" class="c0"' in text
    assert 'aria-label="learning rate: lr 0.5 to 0.25"' in text


def test_a_line_a_domain_however_alike():
    rows = [
        {"step": 1, "loss": 3.0, "weight.web": 0.5, "weight.code": 0.5, "validation.web": 2.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.0, "weight.web": 0.5, "weight.code": 0.5, "validation.web": 1.5},
    ]
    text = curves(rows)
    assert re.findall("<b>(.*?)</b>", text) == [
        "loss, nats a token",
        "held-out loss of domains, nats a token",
        "weights of domains",
    ]
    assert re.findall('key c.">(.*?)<', text) == ["loss 1", "web 1.5", "web 0.5", "code 0.5"]
    many = [{"step": 1, **{f"weight.{number}": 0.1 for number in range(10)}}]
    assert re.findall('class="key (c.)"', curves(many)) == [f"c{n % 8}" for n in range(10)]


def test_trainings_one_after_the_other_are_parted_by_a_line():
    rows = [{"step": step, "loss": 1.0 + step} for step in (1, 2, 1, 2)]
    (start,) = re.findall('d="M([^"]*)" class="start"', curves(rows))
    assert start == "666.7,0.0 666.7,400.0"


def test_learned_masks_have_a_panel_for_each_kind():
    rows = [
        {
            "step": 1,
            "hidden_sparsity": 0.1,
            "hidden_target": 0.2,
            "hidden_lambda": -3.0,
            "hidden_phi": 4.0,
        },
        {
            "step": 2,
            "hidden_sparsity": 0.2,
            "hidden_target": 0.2,
            "hidden_lambda": -1.0,
            "hidden_phi": 5.0,
        },
    ]
    text = curves(rows)
    assert re.findall("<b>(.*?)</b>", text) == ["hidden: expected sparsity", "hidden: multipliers"]
    assert "hidden_lambda -1" in text
