"""The compiled kernels under every instruction set of this processor, against the product in plain torch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsify import native
from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout, dense

PATTERNS = [(1, 4), (2, 4), *((n, 8) for n in range(1, 8))]
ISAS = native.available_isas() if native.library() else ("none",)
VALUES = [("float32", 0), ("int8", 32), ("int8", 128), ("int4", 64), ("int4", 96)]
# Few tokens and many, whole registers and ragged ones.
TOKENS = (1, 2, 3, 5, 8, 17, 33, 70)


def run(layout: Layout, packed: Tensor, bias: Tensor | None, x: Tensor, threads: int = 1) -> Tensor:
    y = torch.full((*x.shape[:-1], layout.out_features), torch.nan)
    tokens = x.numel() // layout.in_features
    b = None if bias is None else bias.data_ptr()
    native.nm_linear(
        layout, packed.data_ptr(), packed.numel(), b, x.data_ptr(), tokens, y.data_ptr(), threads
    )
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("values", VALUES, ids=lambda v: f"{v[0]}-{v[1]}")
def test_every_pattern_size_and_number_of_tokens(
    isa: str,
    values: tuple[str, int],
    use_isa: Callable[[str], None],
    draw: Callable[[Layout, int], Tensor],
) -> None:
    """Rounding apart the results are the same; with rounded values even the sums of codes are exact."""
    use_isa(isa)
    generator = torch.Generator().manual_seed(5)
    for number, (n, m) in enumerate(PATTERNS):
        columns, rows = [(200, 21), (64, 8), (131, 40)][number % 3]
        layout = Layout(n, m, columns, rows, *values)
        packed, bias = draw(layout, n), torch.randn(rows, generator=generator)
        size = dense(packed, layout).abs()
        for tokens in TOKENS:
            x = torch.randn(tokens, columns, generator=generator)
            expected = nm_linear_reference(x, packed, bias, layout)
            found = run(layout, packed, bias, x)
            bound = (x.abs() @ size.T + bias.abs()) * 2e-6
            worst = ((found - expected).abs() - bound).max()
            assert worst <= 0, f"{layout}, {tokens} tokens: {worst} beyond rounding"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("values", [("float32", 0), ("int8", 64), ("int4", 32)])
def test_threads_views_and_no_bias_change_no_bit(
    isa: str,
    values: tuple[str, int],
    use_isa: Callable[[str], None],
    draw: Callable[[Layout, int], Tensor],
) -> None:
    use_isa(isa)
    layout = Layout(2, 4, 100, 70, *values)
    packed = draw(layout, 1)
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), packed])[3:]  # an odd address
    for tokens in (1, 40):
        x = torch.randn(tokens, 100, generator=torch.Generator().manual_seed(2))
        one = run(layout, packed, None, x)
        for threads in (2, 3, 0):
            torch.testing.assert_close(run(layout, packed, None, x, threads), one, rtol=0, atol=0)
        torch.testing.assert_close(run(layout, shifted, None, x), one, rtol=0, atol=0)
        plain = run(layout, packed, torch.zeros(70), x)
        torch.testing.assert_close(plain, one, rtol=0, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_numbers_that_are_none(
    isa: str, use_isa: Callable[[str], None], draw: Callable[[Layout, int], Tensor]
) -> None:
    """A NaN or infinity of one token reaches that token only, and all of its rows."""
    use_isa(isa)
    for values in (("float32", 0), ("int8", 32), ("int4", 32)):
        layout = Layout(2, 4, 64, 16, *values)
        packed = draw(layout, 3)
        for strange in (np.nan, np.inf):
            x = torch.ones(5, 64)
            x[2] = strange
            y = run(layout, packed, None, x)
            assert not y[2].isfinite().any()
            assert y[[0, 1, 3, 4]].isfinite().all()


def test_no_tokens(library: object, draw: Callable[[Layout, int], Tensor]) -> None:
    layout = Layout(2, 4, 64, 16)
    assert run(layout, draw(layout, 0), None, torch.zeros(0, 64)).shape == (0, 16)
