"""Learning-rate factors at the ends of their pieces."""

import math

import pytest

from sparsify.train.schedules import factor

STEPS = 100


def at(shape, step, warmup=0.1):
    return factor(shape, step, STEPS, warmup)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "stable"])
def test_the_rise_is_linear_and_reaches_the_peak(shape):
    assert [at(shape, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert at(shape, 10) == 1.0
    assert factor(shape, 0, STEPS, 0.0) == 1.0


def test_what_follows():
    assert at("constant", 99) == 1.0
    assert at("linear", 55) == pytest.approx(0.5)
    assert at("cosine", 55) == pytest.approx(0.5)
    assert at("cosine", 70) == pytest.approx(0.5 * (1 + math.cos(math.pi * 60 / 90)))


def test_stable_falls_over_the_last_fifth():
    assert [at("stable", step) for step in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert [at("stable", step) for step in (85, 90, 99)] == pytest.approx([0.75, 0.5, 0.05])


@pytest.mark.parametrize("shape", ["linear", "cosine", "stable"])
def test_what_falls_falls_to_the_floor(shape):
    """The floor is a fraction of the peak: a fall from 1 to 0 becomes one from 1 to 0.1."""
    for step in (5, 10, 40, 90, 99):
        plain, floored = at(shape, step), factor(shape, step, STEPS, 0.1, 0.1)
        assert floored == pytest.approx(plain if step < 10 else 0.1 + 0.9 * plain)
    assert factor("constant", 99, STEPS, 0.1, 0.1) == 1.0
