"""Masks that a model makes of a rule for one query and one key: over all of them by broadcasting."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

from torch import Tensor
from transformers import masking_utils

Rule = Callable[..., Tensor]


@contextlib.contextmanager
def broadcast_masks() -> Iterator[None]:
    """Let rules for `(row, head, query, key)` that `torch.vmap` would map take all places at once.

    What is mapped has no memory of its own, by which a graph is made functional, and is looked up by an op
    that holds a region. A rule that is another one over many places gives another mask, which the comparison
    with the model finds.
    """

    def expansion(rule: Rule) -> Rule:
        def mask(*places: Tensor) -> Tensor:
            made = rule(*masking_utils._non_vmap_expansion_sdpa(*places))
            return made.expand([each.shape[0] for each in places])

        return mask

    with (
        mock.patch.object(masking_utils, "_vmap_expansion_sdpa", expansion),
        mock.patch.object(masking_utils, "TransformGetItemToIndex", contextlib.nullcontext),
    ):
        yield
