"""The op of fading means: its formula, its gradient, its types and its multiply-adds."""

import pytest
import torch

from sparsify.ir.ops.decayed_mean import decayed_mean
from sparsify.ir.ops.registry import op_of

BATCH, LENGTH, CHANNELS = 2, 5, 4


def arguments(*, state=False, scale=1.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(shape, generator=draw, dtype=dtype)

    held = torch.stack(
        [some(BATCH, CHANNELS), some(BATCH, CHANNELS).exp(), some(BATCH, CHANNELS)], 1
    )
    along = scale * some(BATCH, LENGTH, CHANNELS), some(BATCH, LENGTH, CHANNELS)
    return [some(CHANNELS).exp(), some(CHANNELS), *along, held if state else None]


def by_hand(decay, bonus, keys, values, state):
    """The sums in the docstring of the op as they stand, without a common exponent."""
    above, below = torch.zeros(2, BATCH, CHANNELS, dtype=keys.dtype)
    if state is not None:
        above, below = state[:, 0] * state[:, 2].exp(), state[:, 1] * state[:, 2].exp()
    found = []
    for t in range(LENGTH):
        now = (bonus + keys[:, t]).exp()
        found.append((above + now * values[:, t]) / (below + now))
        above = (-decay).exp() * above + keys[:, t].exp() * values[:, t]
        below = (-decay).exp() * below + keys[:, t].exp()
    return torch.stack(found, 1), above, below


@pytest.mark.parametrize("state", [False, True])
def test_it_computes_its_formula(state):
    given = arguments(state=state)
    wanted, above, below = by_hand(*given)
    found, last = decayed_mean(*given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(last[:, 0] * last[:, 2].exp(), above)
    torch.testing.assert_close(last[:, 1] * last[:, 2].exp(), below)


def test_large_keys_do_not_overflow():
    found, last = decayed_mean(*arguments(scale=300.0, dtype=torch.float32))
    assert found.isfinite().all()
    assert last.isfinite().all()


def test_a_sequence_in_two_pieces_is_the_sequence():
    decay, bonus, keys, values, _ = arguments()
    whole, last = decayed_mean(decay, bonus, keys, values, None)
    first, middle = decayed_mean(decay, bonus, keys[:, :2], values[:, :2], None)
    second, end = decayed_mean(decay, bonus, keys[:, 2:], values[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)
    # A state of zeros has seen nothing, whatever its exponent is.
    zeros = keys.new_zeros(BATCH, 3, CHANNELS)
    torch.testing.assert_close(decayed_mean(decay, bonus, keys, values, zeros)[0], whole)


@pytest.mark.parametrize("state", [False, True])
def test_gradients_are_those_of_the_formula(state):
    given = [x.requires_grad_() for x in arguments(state=state) if x is not None]
    rest = [] if state else [None]
    assert torch.autograd.gradcheck(lambda *inputs: decayed_mean(*inputs, *rest), given)


def test_types_and_multiply_adds():
    torch.library.opcheck(decayed_mean, arguments(state=True, dtype=torch.float32))
    given = arguments()
    cost = op_of(decayed_mean).cost
    assert cost(given, decayed_mean(*given)) == 4 * BATCH * LENGTH * CHANNELS
