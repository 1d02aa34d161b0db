"""decay: what pulls masked weights towards zero while they are trained, as formulas on one tensor.

`m` is the keep-mask, `u` Adam's first moment (the running mean of the raw gradient), `W` the
weight; all of one shape. Every function returns a new tensor and leaves its arguments as they are.
"""

import torch
from torch import Tensor


def ramp(progress: float, peak: float, rise: float) -> float:
    """The annealed strength: linear from 0 up to `peak` at the fraction `rise` of the run, then flat.

    Source: Huang et al. 2024 (AST, 2407.20584), section 3.2: lambda(t) = alpha min(t, T0), peak =
    alpha T0.
    """
    return peak if progress >= rise else peak * progress / rise


def pull(update: Tensor, weight: Tensor, mask: Tensor, strength: float) -> Tensor:
    """`u + strength * (1 - m) W`: weights that are masked now shrink in proportion to their size.

    Args:
        update: the first moment, or the gradient for SR-STE.
        weight: the dense weight.
        mask: boolean keep-mask.
        strength: at least 0.

    Source: AST, section 3.2 (added after the momentum); Zhou et al. 2021 (SR-STE, 2102.04010),
    equation 7 (added to the gradient).
    """
    return torch.where(mask, update, update.add(weight, alpha=strength))


def proportional(
    update: Tensor, weight: Tensor, mask: Tensor, strength: float, progress: float
) -> Tensor:
    """`(1 - a) u + a strength sign(W)` where masked, `u` where kept; `a` is the progress of the run.

    The gradient loses its say as the pull gains it, so that by the end every masked weight goes to
    zero at the same pace, however strong its gradient is; the sign of zero is zero.

    Args:
        update: the first moment of the raw gradient.
        weight: the dense weight.
        mask: boolean keep-mask.
        strength: at least 0, of the order of the first moment's entries.
        progress: steps done of all steps, in [0, 1].

    Source: Huang et al. 2025 (CAST, 2509.25996), equations 7 and 8.
    """
    pulled = update * (1.0 - progress) + weight.sign() * (progress * strength)
    return torch.where(mask, update, pulled)
