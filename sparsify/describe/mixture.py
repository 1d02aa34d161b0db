"""What mixtures of experts cost by shapes alone: arithmetic, parameters, places, and speed-up at a loss.

The model is that of Artetxe et al., "Efficient Large Scale Language Modeling with Mixtures of Experts"
(2112.10684): layers of width h with feed-forward blocks of 4 h, in every second layer E of them, of which
a token is sent to K.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparsify.errors import OptionError

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Shape:
    """A decoder: `layers` of `width`, sequences of `length`, `vocabulary` entries in a tied table.

    Feed-forward blocks are `[inner, width]` and back, with biases; in every `every`-th layer there are
    `experts` of them, of which a token is sent to `chosen`. Without experts every layer has one.
    """

    layers: int
    width: int
    length: int = 2048
    vocabulary: int = 50257
    experts: int = 0
    chosen: int = 2
    every: int = 2

    @property
    def inner(self) -> int:
        """Channels of a feed-forward block: 4 h."""
        return 4 * self.width

    @property
    def mixed(self) -> int:
        """Layers with experts."""
        return self.layers // self.every if self.experts else 0


def training_flops(shape: Shape, tokens: float) -> float:
    """Floating-point operations of TRAINING on T tokens, the activations computed twice.

    `96 T l h^2 (1 + s / (6 h) + V / (16 l h) + (2 / 3) (K - 1) l_mixed / l)`: four passes (forward,
    again, two of the gradient) over 12 l h^2 weights, attention over all s keys, and logits; experts a
    token more than one add 8 h^2 each, which for top-2 in every second layer is 1/3 (2112.10684, appendix).
    """
    layers, width = shape.layers, shape.width
    bracket = 1 + shape.length / (6 * width) + shape.vocabulary / (16 * layers * width)
    if shape.experts:
        bracket += 2 / 3 * (shape.chosen - 1) * shape.mixed / layers
    return 96 * tokens * layers * width**2 * bracket


def forward_multiply_adds(shape: Shape, *, causal: bool = True, logits: bool = True) -> float:
    """Multiply-adds of one token in a FORWARD: `12 l h^2 + l s h + V h + 8 h^2 (K - 1) l_mixed`.

    Attention counts the half of the keys that a causal mask leaves, all of them (`2 l s h`) without
    `causal`; `logits` is the term `V h`. Another quantity than `training_flops`: ratios of the two differ.
    """
    layers, width = shape.layers, shape.width
    attention = layers * shape.length * width * (1 if causal else 2)
    more = 8 * width**2 * (shape.chosen - 1) * shape.mixed if shape.experts else 0
    return 12 * layers * width**2 + attention + shape.vocabulary * width * logits + more


def feed_forward_parameters(shape: Shape) -> int:
    """One feed-forward block with biases: `2 h i + i + h`, i = 4 h."""
    return 2 * shape.width * shape.inner + shape.inner + shape.width


def expert_parameters(shape: Shape) -> int:
    """One expert in each layer that has experts, `l_mixed (2 h i + i + h)`; all are E times that."""
    return shape.mixed * feed_forward_parameters(shape)


def other_parameters(shape: Shape) -> int:
    """All that is not of an expert: the tied table, attention, norms with biases, plain blocks, routers.

    `V h + l (4 h^2 + 4 h + 4 h) + 2 h + (l - l_mixed) (2 h i + i + h) + l_mixed h E`; positions are fixed.
    """
    width = shape.width
    layer = 4 * width**2 + 4 * width + 2 * 2 * width
    plain = (shape.layers - shape.mixed) * feed_forward_parameters(shape)
    routers = shape.mixed * width * shape.experts
    return shape.vocabulary * width + shape.layers * layer + 2 * width + plain + routers


def total_parameters(shape: Shape) -> int:
    """All parameters: `other_parameters + E expert_parameters`."""
    return other_parameters(shape) + shape.experts * expert_parameters(shape)


def touched_experts(experts: int, chosen: int, tokens: int) -> float:
    """Experts of a set that N tokens reach in expectation: `E (1 - (1 - K / E)^N)`.

    Every token is sent to K different ones, all alike likely; a router that prefers some reaches fewer.
    OptionError for a choice that cannot be made.
    """
    if not 1 <= chosen <= experts or tokens < 0:
        raise OptionError(f"{tokens} tokens cannot be sent to {chosen} of {experts} experts each")
    return experts * (1 - (1 - chosen / experts) ** tokens)


def capacity(tokens: int, experts: int, factor: float = 2.0) -> int:
    """Places an expert has in a batch of B tokens: `C B / E`, rounded up; OptionError below one expert."""
    if experts < 1 or tokens < 0 or factor <= 0:
        raise OptionError(
            f"a factor of {factor} gives no places to {experts} experts and {tokens} tokens"
        )
    return math.ceil(factor * tokens / experts)


def dropped(loads: Sequence[int], places: int) -> int:
    """Tokens beyond the places of their expert, left to the residual: `sum max(0, load - places)`."""
    return sum(max(0, load - places) for load in loads)


def speed_up(dense: Curve, mixture: Curve, loss: float) -> float:
    """How many times the compute of a mixture a dense model takes to the same loss, in TRAINING.

    Curves are (compute, loss), losses falling; between points log compute is linear in the loss.
    Raises OptionError for a loss outside one of the curves: nothing is extrapolated.
    """
    return _compute(dense, loss, "dense") / _compute(mixture, loss, "mixture's")


def _compute(curve: Curve, loss: float, name: str) -> float:
    """The compute at which a curve reaches a loss."""
    points = sorted(curve)
    losses = [value for _, value in points]
    if points and not points[0][0] > 0:
        raise OptionError(
            f"the {name} curve has a compute of {points[0][0]}; its log needs one above 0"
        )
    if any(after >= before for before, after in pairwise(losses)):
        raise OptionError(
            f"the {name} curve does not fall all the way; give points whose loss falls as compute grows"
        )
    if not points or not losses[-1] <= loss <= losses[0]:
        measured = f"from {losses[-1]} to {losses[0]}" if points else "nowhere"
        raise OptionError(
            f"loss {loss} lies outside the {name} curve, measured {measured}; choose one that both reach"
        )
    for (less, high), (more, low) in pairwise(points):
        if low <= loss <= high:
            share = (high - loss) / (high - low)
            return math.exp(math.log(less) + share * (math.log(more) - math.log(less)))
    return points[0][0]
