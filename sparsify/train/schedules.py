"""Learning-rate schedules: the factor of the peak rate at a step."""

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "stable"]
# The part of a run over which `stable` falls.
FALL = 0.2


def factor(shape: Shape, step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The learning rate at step `0 <= step < steps` relative to its peak.

    Rises linearly over the first `warmup * steps` steps, then stays (`constant`), falls linearly to 0
    (`linear`), or as `(1 + cos(pi t)) / 2` with t from 0 to 1 over the rest (`cosine`); `stable` stays, and
    falls linearly to 0 over the last fifth (Haegele et al. 2024, 2405.18392). What falls, falls to `floor`.
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if shape == "constant":
        return 1.0
    if shape == "stable":
        left = min(1.0, (steps - step) / max(1, round(FALL * steps)))
    else:
        t = (step - rise) / max(1, steps - rise)
        left = 1.0 - t if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * t))
    return floor + (1.0 - floor) * left
