"""The inputs of a program: what stands in for missing ones, and the sizes that it takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import SparsifyError


def has_default(name: str) -> bool:
    """Whether an input of that name may be missing from a batch: a mask, positions, segments."""
    return name.endswith("attention_mask") or name in ("position_ids", "token_type_ids")


def default_input(name: str, reference: Tensor) -> Tensor:
    """The value of a missing input, shaped like `reference [batch, length, ...]`.

    Raises SparsifyError for a name that has no default.
    """
    if not has_default(name):
        raise SparsifyError(f"the batch lacks the input '{name}', which has no default")
    batch, length = reference.shape[0], reference.shape[1]
    device = reference.device
    if name.endswith("attention_mask"):
        return torch.ones(batch, length, dtype=torch.long, device=device)
    if name == "position_ids":
        return torch.arange(length, device=device).expand(batch, length).contiguous()
    return torch.zeros(batch, length, dtype=torch.long, device=device)


def shape_words(value: Tensor, varying: Mapping[int, str]) -> str:
    """The shape of an input, names where it varies: `[batch, length]`."""
    return f"[{', '.join(varying.get(dim, str(size)) for dim, size in enumerate(value.shape))}]"


def check_sizes(
    name: str,
    value: Tensor,
    example: Tensor,
    varying: Mapping[int, str],
    limits: Mapping[str, tuple[int, int]],
) -> None:
    """Refuse other sizes than the example's, where they vary beyond their limits; SparsifyError."""
    fixed = [dim for dim in range(example.dim()) if dim not in varying]
    if example.dim() != value.dim() or any(example.shape[d] != value.shape[d] for d in fixed):
        raise SparsifyError(
            f"the program takes {name} {shape_words(example, varying)}, and was given "
            f"{list(value.shape)}; trace the model with inputs of that shape to have a program for it"
        )
    for dim, what in varying.items():
        least, most = limits.get(what, (0, value.shape[dim]))
        if not least <= value.shape[dim] <= most:
            raise SparsifyError(
                f"a {what} of {value.shape[dim]} is not within {least} to {most}: beyond it the model's code "
                "does something else than the program; trace the model with inputs of that shape"
            )


def check_known(batch: Mapping[str, Tensor], known: Mapping[str, list[Any]]) -> None:
    """Refuse other numbers of an argument than those that the program was traced for; SparsifyError."""
    for name, numbers in known.items():
        if name in batch and batch[name].tolist() != numbers:
            raise SparsifyError(
                f"the program was traced for {name} {numbers}, and was given {batch[name].tolist()}; trace "
                "the model with inputs that have those to have a program for them"
            )
