"""hard_concrete: masks in [0, 1] that can be learnt: how they are drawn, expected and settled.

`a` is the log-alpha of a unit, larger for what is to stay, held in [-BOUND, BOUND]:

    s = sigmoid((logit + a) / T)      logit = ln(u / (1 - u)), u uniform in (0, 1)
    z = clip((r - l) s + l, 0, 1)     T = 2/3, l = -0.1, r = 1.1

so that z is 0 or 1 with some probability and anything between them otherwise. Source: Louizos et al. 2018
(1712.01312), section 2.2; Xia et al. 2024 (Sheared LLaMA, 2310.06694), section 2.1 and the released code.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sparsify.tensors.masks import keep_top
from sparsify.tensors.seeds import generator_of

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
BOUND = math.log(100)
# How close to 0 and 1 the uniform numbers come.
_EDGE = 1e-6
_SHIFT = -TEMPERATURE * math.log(-LOW / HIGH)
# The largest expected sparsity there is, 0.9529: that of a log-alpha at its lower bound.
REACH = 1 - 1 / (1 + math.exp(BOUND - _SHIFT))


def logits(size: int, seeds: Iterable[int]) -> Tensor:
    """The logits `[size]`, float32, of uniform numbers that seeds decide."""
    u = torch.rand(size, generator=generator_of(seeds), dtype=torch.float64)
    return torch.logit(_EDGE + (1 - 2 * _EDGE) * u).float()


def sample(log_alpha: Tensor, logit: Tensor) -> Tensor:
    """`z` of log-alphas and logits of one shape; its gradient reaches the log-alphas where 0 < z < 1."""
    s = torch.sigmoid((logit + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def keep_probability(log_alpha: Tensor) -> Tensor:
    """`P(z > 0) = sigmoid(a - T ln(-l / r)) = sigmoid(a + 1.5986)`."""
    return torch.sigmoid(log_alpha + _SHIFT)


def expected_sparsity(log_alpha: Tensor) -> Tensor:
    """The expected fraction of zeros among units, a scalar: `1 - mean P(z > 0)`."""
    return 1 - keep_probability(log_alpha).mean()


def soft(log_alpha: Tensor) -> Tensor:
    """What a mask is when nothing is drawn: `sigmoid(0.8 a / T) = sigmoid(1.2 a)`."""
    return torch.sigmoid(0.8 / TEMPERATURE * log_alpha)


def settled(log_alpha: Tensor, count: int) -> Tensor:
    """The soft masks of exactly the `count` largest log-alphas; zero elsewhere.

    Raises OptionError when there are not that many units.
    """
    return torch.where(keep_top(log_alpha, count), soft(log_alpha), 0.0)


def penalty(expected: Tensor, target: Tensor, multipliers: Tensor) -> Tensor:
    """`mean(lambda (e - t) + phi (e - t)^2)` over the rows of a family, a scalar.

    `expected`, `target` `[rows]` are fractions that go, `multipliers` `[2]` lambda and phi. Descent in the
    masks and ascent in the multipliers meet where `e = t`.
    """
    off = expected - target
    return (multipliers[0] * off + multipliers[1] * off.square()).mean()
