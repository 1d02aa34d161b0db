"""The op of recurrences: its formula, its gradient, its types and its multiply-adds."""

import pytest
import torch

from sparsify.ir.ops.registry import op_of
from sparsify.ir.ops.state_scan import state_scan

BATCH, LENGTH, HEADS, ROWS, COLUMNS = 2, 5, 3, 4, 6


def arguments(*, rate, state, decay=(ROWS, COLUMNS), dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.rand(shape, generator=draw, dtype=dtype)

    lead = (BATCH, LENGTH, HEADS)
    return [
        some(*lead, *decay),
        some(*lead, ROWS) - 0.5,
        some(*lead, COLUMNS) - 0.5,
        some(*lead, COLUMNS) - 0.5,
        some(*lead) if rate else None,
        some(BATCH, HEADS, ROWS, COLUMNS) if state else None,
    ]


def by_hand(decay, values, keys, queries, rate, state):
    """The formula in the docstring of the op, one number after another."""
    found = torch.zeros_like(values)
    last = torch.zeros(BATCH, HEADS, ROWS, COLUMNS, dtype=values.dtype)
    for b in range(BATCH):
        for h in range(HEADS):
            held = last[b, h] if state is None else state[b, h]
            for t in range(LENGTH):
                held = decay[b, t, h] * held
                update = values[b, t, h]
                if rate is not None:
                    update = rate[b, t, h] * (update - held @ keys[b, t, h])
                held = held + torch.outer(update, keys[b, t, h])
                found[b, t, h] = held @ queries[b, t, h]
            last[b, h] = held
    return found, last


@pytest.mark.parametrize("decay", [(ROWS, COLUMNS), (1, 1), (1, COLUMNS)])
@pytest.mark.parametrize("rate", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_it_computes_its_formula(decay, rate, state):
    given = arguments(rate=rate, state=state, decay=decay)
    for found, wanted in zip(state_scan(*given), by_hand(*given), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_sequence_in_two_pieces_is_the_sequence():
    *along, rate, state = arguments(rate=True, state=True)
    whole, last = state_scan(*along, rate, state)
    first, middle = state_scan(*(x[:, :2] for x in (*along, rate)), state)
    second, end = state_scan(*(x[:, 2:] for x in (*along, rate)), middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)
    wrong, _ = state_scan(*(x[:, 2:] for x in (*along, rate)), None)
    assert (wrong - second).abs().max() > 0.01


@pytest.mark.parametrize("rate", [False, True])
def test_gradients_are_those_of_the_formula(rate):
    given = arguments(rate=rate, state=True, decay=(1, COLUMNS))
    wanted = [None if x is None else x.requires_grad_() for x in given]
    inputs = [x for x in wanted if x is not None]

    def run(*inputs):
        left = iter(inputs)
        return state_scan(*(None if x is None else next(left) for x in given))

    assert torch.autograd.gradcheck(run, inputs)


def test_types_and_multiply_adds():
    torch.library.opcheck(state_scan, arguments(rate=True, state=False, dtype=torch.float32))
    given = arguments(rate=False, state=False)
    steps = BATCH * LENGTH * HEADS
    cost = op_of(state_scan).cost
    assert cost(given, state_scan(*given)) == 2 * steps * ROWS * COLUMNS
    given = arguments(rate=True, state=False)
    assert cost(given, state_scan(*given)) == 3 * steps * ROWS * COLUMNS
