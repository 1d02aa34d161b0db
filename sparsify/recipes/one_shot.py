"""Recipes without training, or with little behind: masks, and masks with rounding, at once."""

from sparsify.recipes.recipe import Recipe

_OBSERVED = "insert-probes | calibrate{samples=128}"


def _one_shot(score: str, gram: str = "") -> str:
    """2:4 at once by a score of `choose-masks`."""
    return (
        f"insert-probes{gram} | calibrate{{samples=128}} | insert-masks | "
        f"choose-masks{{score={score} pattern=2:4}} | remove-probes | fold-masks"
    )


def _slim(adapters: str, gram: str = "", *, tuned: bool = False) -> str:
    """SLiM: scales of the dense weights, masks, adapters for both losses, all packed or rounded to 4 bits."""
    training = (
        "train{steps=100 batch=8 lr=0.001 update=adapters task=0.0 distill=kl} | " if tuned else ""
    )
    return (
        f"insert-probes{gram} | calibrate{{samples=128}} | insert-masks | "
        "insert-quantizers{values=int4 group=128} | choose-scales{by=histogram} | "
        "choose-masks{score=wanda pattern=2:4} | insert-adapters{multiple=32} | "
        f"{adapters} | remove-probes | fold-masks | pack-nm{{values=int4}} | "
        "insert-quantizers{values=int4 group=32 targets=*_adapter_*} | "
        f"choose-scales{{targets=*_adapter_*}} | {training}pack-dense"
    )


RECIPES = (
    Recipe(
        "magnitude",
        "half of the weights by size, one threshold a layer, no data",
        "insert-masks | choose-masks{score=magnitude sparsity=0.5} | fold-masks",
    ),
    Recipe("wanda", "2:4 at once by Wanda's score, weights as they were", _one_shot("wanda")),
    Recipe(
        "ria",
        "2:4 at once by relative importance and activations, channels in an order that loses less",
        f"{_OBSERVED} | permute-channels | remove-probes | {_one_shot('ria')}",
    ),
    Recipe("sparsegpt", "2:4 at once by SparseGPT", _one_shot("sparsegpt", "{gram=true}")),
    Recipe(
        "sparsegpt-int4",
        "2:4 and int4 in one sweep of SparseGPT, each loss repaired by the weights still free, packed",
        "insert-probes{gram=true} | calibrate{samples=128} | insert-masks | "
        "insert-quantizers{values=int4 group=64} | "
        "choose-masks{score=sparsegpt pattern=2:4 scales=mse} | remove-probes | fold-masks | "
        "pack-nm{values=int4}",
    ),
    Recipe(
        "sparsegpt-mixed",
        "2:4 by SparseGPT at half a byte a weight: int8 where int4 would cost the loss most, int4 elsewhere, "
        "packed",
        "insert-probes{gram=true} | calibrate{samples=128} | insert-masks | "
        "choose-masks{score=sparsegpt pattern=2:4} | remove-probes | fold-masks | "
        "allocate-values{bytes=0.5} | insert-quantizers{values=allocated} | choose-scales | "
        "pack-nm{values=rounded}",
    ),
    Recipe(
        "slim",
        "2:4 and int4 at once, one scale a weight, what is lost given back by 4-bit low-rank branches that "
        "stay beside the packed weights (SLiM)",
        _slim("choose-adapters{absorb=true}"),
    ),
    Recipe(
        "slim-naive",
        "as slim, the branches by a plain singular value decomposition: for comparison",
        _slim("choose-adapters{by=naive absorb=true}"),
    ),
    Recipe(
        "slim-gram",
        "as slim, the branches by the whole Gram matrix of the input, which loses less of the output",
        _slim("choose-adapters{by=gram absorb=true}", "{gram=true}"),
    ),
    Recipe(
        "slim-tuned",
        "as slim, the rounded branches then distilled from the dense model, packed weights as they are",
        _slim("choose-adapters{absorb=true}", tuned=True),
    ),
    Recipe("alps", "2:4 at once by operator splitting (ALPS)", _one_shot("alps", "{gram=true}")),
    Recipe(
        "trawl",
        "up and down of one layer at a low rank, which one searched on half of the data and reported on the "
        "other: the same size, less noise where there is some (TRAWL)",
        "choose-tensors{rank=16,32,64,128 search=loss}",
    ),
)
