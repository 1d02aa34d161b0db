"""Which parameters learn."""

import contextlib
from collections.abc import Iterator

from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of

# What else than the low-rank branches of weights learns.
_BRANCHES = {"adapters": ("adapters",), "experts": ("experts", "lora"), "prompt": ("prompt",)}


@contextlib.contextmanager
def select_trainable(program: Program, update: str) -> Iterator[list[str]]:
    """Let the chosen parameters require gradients inside the block; yields their paths.

    `lora`: the low-rank branches of weights; `norms`: those and every vector (norm weights, biases);
    `adapters`: the branches beside linears; `experts`: those beside linears, with their routers, and low-rank
    branches of weights where there are some; `prompt`: the rows of a soft prompt; `all`: everything.
    """
    parameters = dict(program.module.named_parameters())
    known = {path for path, _ in program.tensors()}
    branches = _BRANCHES.get(update, ("lora",))
    flags = {path: value.requires_grad for path, value in parameters.items()}
    chosen = [
        path
        for path, value in parameters.items()
        if update == "all"
        or feature_of(path, known) in branches
        or (update == "norms" and value.dim() == 1)
    ]
    try:
        for path, value in parameters.items():
            value.requires_grad_(path in chosen)
        yield chosen
    finally:
        for path, value in parameters.items():
            value.requires_grad_(flags[path])
            value.grad = None
