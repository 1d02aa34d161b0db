"""quantize: symmetric rounding of weights and activations, a scale for each row and column group.

    W_ok  ~  scale_og code_ok,   code = clamp(round(W / scale), -q, q),   q = 2^(bits - 1) - 1

Column k belongs to group `g = k // G`; the last group of a row may be shorter. Scales are float16.
Zeros stay zeros under every scale, so rounding keeps a pattern.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.precision import check_finite, check_matrix, shape_of
from sparsify.tensors.slimquant import best_clip

SLAB = 1 << 18  # weights tried at once: they stay in the cache
SHRINKS = [1 - step / 100 for step in range(80)]
LEAST = 2.0**-24  # the smallest float16 above 0
NORMAL = 2.0**-14  # the smallest float16 of full precision


@dataclass(frozen=True)
class Grid:
    """What a weight is to be rounded to: codes of `bits`, a scale for each row and `group` columns.

    `choose` makes the scales, float16 [out, groups], of a weight [out, in], a group and bits.
    Raises OptionError when the group or the bits cannot be meant.
    """

    choose: Callable[[Tensor, int, int], Tensor]
    group: int
    bits: int

    def __post_init__(self) -> None:
        _check_group(self.group)
        largest_code(self.bits)


def largest_code(bits: int) -> int:
    """Return q, the largest code of symmetric rounding: `2^(bits - 1) - 1`.

    The code -2^(bits - 1) is not used: the grid is the same on both sides of 0.

    Args:
        bits: of a code, 2 to 8.

    Raises:
        OptionError: when the bits are others.
    """
    if not 2 <= bits <= 8:
        raise OptionError(f"{bits} bits make no codes: they have 2 to 8")
    return int(2 ** (bits - 1)) - 1


def absmax_scales(weight: Tensor, group: int, bits: int) -> Tensor:
    """Choose scales that clip nothing: `scale_og = max_k |W_ok| / q` over the columns of g.

    Rounded to the nearest float16; where that has lost precision (below 2^-14), up to the next,
    so a group with a nonzero never has the scale 0.

    Args:
        weight: W [out, in].
        group: G, dense columns that share a scale.
        bits: of a code.

    Returns:
        float16 [out, groups], 0 for groups of zeros.

    Raises:
        OptionError: when the group or the bits cannot be meant.
        SparsifyError: when W is no matrix, not finite, or so large that float16 has no scale.
    """
    q = largest_code(bits)
    return _half(_grouped(_checked(weight), group).abs().amax(2).double() / q)


def mse_scales(weight: Tensor, group: int, bits: int) -> Tensor:
    """Choose the scales of least squared error: `min_c sum_k (W_ok - c q_c(W_ok))^2` for each group.

    Tried are `c = p max|W| / q` for p = 1, 0.99, ... 0.21, as float16 and on the grid they give;
    on a tie the largest is taken. So no group rounds worse than with `absmax_scales`.

    Args:
        weight: W [out, in].
        group: G, dense columns that share a scale.
        bits: of a code.

    Returns:
        float16 [out, groups], 0 for groups of zeros.

    Raises:
        OptionError: when the group or the bits cannot be meant.
        SparsifyError: when W is no matrix, not finite, or so large that float16 has no scale.

    Source: Frantar et al. 2022 (GPTQ, 2210.17323), the search of its released code, which has the
    power 2.4 where this has the square.
    """
    q = largest_code(bits)
    grouped = _grouped(_checked(weight), group)
    scales = torch.empty(grouped.shape[:2], dtype=torch.float16, device=weight.device)
    step = max(1, SLAB // (grouped.shape[1] * group))
    for start in range(0, len(grouped), step):
        part = grouped[start : start + step]
        peak = part.abs().amax(2).double()
        best = _half(peak / q)
        least = _squared_error(part, best, q)
        for shrink in SHRINKS[1:]:
            scale = _half(peak * (shrink / q))
            error = _squared_error(part, scale, q)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        scales[start : start + step] = best
    return scales


def histogram_scales(weight: Tensor, group: int, bits: int) -> Tensor:
    """Choose one scale for the whole tensor by SLiM-Quant, and give it to every group.

    `scale = alpha / q` with the clip alpha of `best_clip`. The method is the paper's: per tensor,
    meant to be followed by a low-rank branch. `mse_scales` searches each group on its own and
    loses less.

    Args:
        weight: W [out, in].
        group: G, dense columns that share a scale.
        bits: of a code.

    Returns:
        float16 [out, groups], all the same; 0 for a tensor of zeros.

    Raises:
        OptionError: when the group or the bits cannot be meant.
        SparsifyError: when W is no matrix, not finite, or so large that float16 has no scale.

    Source: Mozaffari et al. 2024 (SLiM, 2410.09615), SLiM-Quant.
    """
    q = largest_code(bits)
    clip = torch.tensor(best_clip(_checked(weight), q), dtype=torch.float64, device=weight.device)
    shape = _grouped(weight, group).shape[:2]
    return _half(clip / q).expand(shape).contiguous()


# The choices by name.
SCALES: Mapping[str, Callable[[Tensor, int, int], Tensor]] = {
    "absmax": absmax_scales,
    "mse": mse_scales,
    "histogram": histogram_scales,
}


def round_weight(weight: Tensor, scales: Tensor, group: int, bits: int) -> Tensor:
    """Round to codes: `clamp(round(W_ok / scale_og), -q, q)`, halves to even; 0 where the scale is.

    Args:
        weight: W [out, in].
        scales: float16 [out, groups].
        group: G, dense columns that share a scale.
        bits: of a code.

    Returns:
        int8 [out, in].

    Raises:
        OptionError: when the group or the bits cannot be meant.
        SparsifyError: when W is no matrix or not finite, or the scales do not fit it.
    """
    q = largest_code(bits)
    grouped = _grouped(_checked(weight), group)
    _check_scales(scales, grouped)
    codes = _codes(grouped, scales.float()[:, :, None], q).to(torch.int8)
    return codes.flatten(1)[:, : weight.shape[1]].contiguous()


def nearest(values: Tensor, scales: Tensor, q: int) -> Tensor:
    """Return the nearest points of a grid: `scale clamp(round(v / scale), -q, q)`, 0 where the scale is.

    Args:
        values: v, any shape.
        scales: one for each value, or of a shape that broadcasts; in the dtype of v.
        q: the largest code.
    """
    return _codes(values, scales, q).mul_(scales)


def dequantize(codes: Tensor, scales: Tensor, group: int) -> Tensor:
    """Return the weight that codes stand for: `scale_og code_ok`, exact in float32.

    Args:
        codes: int8 [out, in].
        scales: float16 [out, groups].
        group: G, dense columns that share a scale.

    Returns:
        float32 [out, in].

    Raises:
        OptionError: when the group cannot be meant.
        SparsifyError: when the scales do not fit the codes.
    """
    grouped = _grouped(codes, group)
    _check_scales(scales, grouped)
    wide = grouped * scales.float()[:, :, None]
    return wide.flatten(1)[:, : codes.shape[1]].contiguous()


def round_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round activations to int8 with a scale for each token and group, as the kernels do.

    `s = max |x| / 127` and `a = round(x * (127 / max |x|))`, halves to even, in float32; a is 0
    where `127 / max |x|` is not finite, and s is NaN where the group holds NaN or infinity.

    Args:
        x: float32 [..., in].
        group: G, columns that share a scale.

    Returns:
        a, int8 [..., padded] with zeros up to a multiple of G, and s, float32 [..., groups].

    Raises:
        OptionError: when the group cannot be meant.

    Source: docs/packed.md.
    """
    grouped = _grouped(x.detach().float(), group)
    peak = grouped.abs().amax(-1)
    sane = peak.isfinite()
    inverse = torch.full_like(peak, 127) / peak  # `127 / peak` would multiply by a rounded 1 / peak
    inverse = torch.where(inverse.isfinite(), inverse, 0)
    codes = torch.where(sane[..., None], grouped * inverse[..., None], 0).round().to(torch.int8)
    return codes.flatten(-2), torch.where(sane, peak / 127, torch.nan)


def _grouped(tensor: Tensor, group: int) -> Tensor:
    """Cut the last axis into groups, the last one filled up with zeros: [..., groups, G]."""
    _check_group(group)
    columns = tensor.shape[-1]
    count = -(-columns // group)
    return pad(tensor, (0, count * group - columns)).reshape(*tensor.shape[:-1], count, group)


def _check_group(group: int) -> None:
    if group < 1:
        raise OptionError(f"group {group} has no columns: at least 1 column shares a scale")


def _checked(weight: Tensor) -> Tensor:
    check_matrix(weight, "the weight to round")
    check_finite(weight, "the weight to round")
    return weight.detach().float()


def _check_scales(scales: Tensor, grouped: Tensor) -> None:
    if scales.dtype != torch.float16 or scales.shape != grouped.shape[:2]:
        raise SparsifyError(
            f"the scales must be torch.float16 {list(grouped.shape[:2])}, "
            f"but they are {scales.dtype} {shape_of(scales)}"
        )


def _codes(values: Tensor, scales: Tensor, q: int) -> Tensor:
    """Return the codes of values in the dtype of values; scales broadcast."""
    # v / inf is 0: the only code where the scale is 0.
    divisor = scales.masked_fill(scales == 0, torch.inf)
    return (values / divisor).round_().clamp_(-q, q)


def _squared_error(grouped: Tensor, scales: Tensor, q: int) -> Tensor:
    """Return the squared error of rounding each group, [out, groups]."""
    rounded = nearest(grouped, scales.float()[:, :, None], q)
    return rounded.sub_(grouped).square_().sum(2)


def _half(scales: Tensor) -> Tensor:
    """Round scales, float64, to float16: to the nearest, or up where that is not normal."""
    half = scales.half()
    if half.isinf().any():
        raise SparsifyError(
            f"a scale of {float(scales.max()):.6g} does not fit float16, whose largest number is "
            "65504; the weights are too large to round"
        )
    up = (scales / LEAST).ceil().clamp(min=1) * LEAST
    return torch.where((scales > 0) & (scales < NORMAL), up.half(), half)
