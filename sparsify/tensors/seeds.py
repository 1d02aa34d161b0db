"""Random numbers that several seeds decide together: of a run, a step, a place."""

from collections.abc import Iterable

import torch


def generator_of(seeds: Iterable[int]) -> torch.Generator:
    """A fresh CPU generator from a tuple of seeds: the same on every process."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)
