"""Training on several ranks: each takes its part of every batch, and all take the same step."""

from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from sparsify import ranks
from sparsify.errors import OptionError
from sparsify.tensors.seeds import generator_of
from sparsify.train.settings import Figures, Settings
from sparsify.train.shards import sharding


def check_shares(settings: Settings, *, measures: bool) -> None:
    """Refuse a batch of which some rank would get nothing, and what sharding cannot do; OptionError.

    `measures` says that losses of domains are measured.
    """
    if sharding() and measures:
        raise OptionError(
            "held-out losses of domains are not measured of sharded parameters; take data without domains, "
            "or leave FSDP out of accelerate's config"
        )
    if settings.batch < ranks.count():
        raise OptionError(
            f"batch={settings.batch} is less than the {ranks.count()} processes that share it; take "
            f"batch={ranks.count()} or more, or fewer processes"
        )


def prepared(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """The model and the optimiser as accelerate wraps them: on several ranks gradients are averaged."""
    if sharding():  # which is done, and all that is left is the precision
        wrapped = accelerator.prepare_model(model, evaluation_mode=True)
        return wrapped, accelerator.prepare(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(model, DistributedDataParallel):
        # Every rank computes the same masks: sending them before each forward would only take time.
        model.forward_sync_buffers = False
    return model, optimizer


def seed_step(seed: int, step: int) -> None:
    """Seed what dropout draws of a rank's part of the data, so that a resumed run draws it again."""
    if ranks.count() > 1:
        torch.manual_seed(generator_of((seed, step, ranks.rank())).initial_seed())


def mean_over_ranks(figures: Figures) -> Figures:
    """The means of figures over ranks, whose gradients are averaged too."""
    sums = ranks.totals(*figures.values())
    return {key: each / ranks.count() for key, each in zip(figures, sums, strict=True)}
