"""slimquant: the clip of SLiM-Quant, from a histogram of the sizes of the weights."""

import torch
from torch import Tensor

COARSE = 10
SLAB = 1 << 20  # candidates times bins at once


def best_clip(weight: Tensor, q: int) -> float:
    """Find the clip alpha of least expected squared error over the whole tensor.

    `E(alpha) = int_0^alpha f(x) (x - Q(x))^2 dx + int_alpha^inf f(x) (x - alpha)^2 dx`, where f is
    the density of |W| and Q rounds to the grid `alpha / q`. f is a histogram of
    `max(512, min(numel / 1000, 20000))` bins. Ten evenly spaced alphas in (0, max |W|] are tried,
    then every edge of a bin between the neighbours of the best.

    Zeros are left out of f: every grid holds them, and at the centre of a bin they would be none.
    The grid is the one the codes have, with `q = 2^(bits - 1) - 1` steps; the paper's has one more,
    and its code floors to a grid twice as fine.

    Args:
        weight: W, any shape, finite.
        q: the largest code.

    Returns:
        alpha, in (0, max |W|]; 0 for a tensor of zeros.

    Source: Mozaffari et al. 2024 (SLiM, 2410.09615), SLiM-Quant.
    """
    sizes = weight.detach().abs()
    sizes = sizes[sizes > 0].double()
    if not len(sizes):
        return 0.0
    peak = float(sizes.max())
    bins = max(512, min(len(sizes) // 1000, 20000))
    # Sizes are taken relative to the largest: all numbers are between 0 and 1.
    density = torch.histc(sizes / peak, bins, 0.0, 1.0)
    edges = torch.arange(1, bins + 1, dtype=torch.float64, device=weight.device) / bins
    coarse = torch.arange(1, COARSE + 1, dtype=torch.float64, device=weight.device) / COARSE
    middle = float(coarse[_errors(coarse, density, q).argmin()])
    near = edges[(edges >= middle - 1 / COARSE) & (edges <= middle + 1 / COARSE)]
    return peak * float(near[_errors(near, density, q).argmin()])


def _errors(clips: Tensor, density: Tensor, q: int) -> Tensor:
    """Return E for each clip: integrals are sums over the centres of the bins."""
    bins = len(density)
    centres = (torch.arange(bins, dtype=torch.float64, device=density.device) + 0.5) / bins
    errors = []
    for part in torch.split(clips, max(1, SLAB // bins)):
        grid = part[:, None] / q
        rounded = (centres / grid).round_().clamp_(max=q).mul_(grid)
        errors.append(rounded.sub_(centres).square_() @ density)
    return torch.cat(errors)
