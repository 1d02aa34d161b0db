"""Gradients of ops that run along a sequence step by step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep what an op was given: nothing else is needed to take its steps anew."""
    ctx.save_for_backward(*inputs)


def gradients_of(steps: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The gradients of steps, which are taken anew: the states of all would be as many as steps."""

    def gradients(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]
        given: list[Any] = [None if x is None else x.detach() for x in ctx.saved_tensors]
        for place in wanted:
            given[place].requires_grad_()
        with torch.enable_grad():
            outputs = steps(*given)
            pulled = torch.autograd.grad(outputs, [given[place] for place in wanted], above)
        found: list[Tensor | None] = [None] * len(given)
        for place, gradient in zip(wanted, pulled, strict=True):
            found[place] = gradient
        return tuple(found)

    return gradients
