"""Which sequences a step of training takes."""

from functools import lru_cache

from sparsify.data.sequences import order

# One permutation serves a whole epoch of steps; a step may reach into the next one.
_order = lru_cache(maxsize=2)(order)


def step_indices(size: int, seed: int, step: int, batch: int) -> list[int]:
    """The sequences of one step: each epoch is one permutation, taken `batch` at a time without gaps."""
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, within = divmod(position, size)
        indices.append(int(_order(size, seed, epoch)[within]))
    return indices
