"""2:4 by SparseGPT, recovered by low-rank branches, and what packs it."""

from sparsify.recipes.recipe import Recipe

_PRUNED = (
    "insert-probes{gram=true} | calibrate | insert-masks | "
    "choose-masks{score=sparsegpt pattern=2:4} | remove-probes | insert-lora{rank=16 alpha=32.0}"
)
_RECOVERED = (
    "train{steps=80 batch=8 lr=0.002 update=lora task=0.0 distill=kl} | fold-lora | fold-masks"
)
_SEMI_STRUCTURED = f"{_PRUNED} | {_RECOVERED}"
_PACKED_INT4 = (
    f"{_PRUNED} | insert-quantizers{{values=int4 group=64}} | choose-scales{{by=mse}} | "
    f"{_RECOVERED} | pack-nm{{values=int4}}"
)


RECIPES = (
    Recipe(
        "semi-structured",
        "2:4 by SparseGPT, recovered by low-rank branches under the mask, which fold without loss",
        _SEMI_STRUCTURED,
    ),
    Recipe(
        "packed",
        "semi-structured, then stored without its zeros for the N:M kernels, in float32",
        f"{_SEMI_STRUCTURED} | pack-nm",
    ),
    Recipe(
        "packed-int8",
        "semi-structured, then rounded to int8 and stored without its zeros for the N:M kernels",
        f"{_SEMI_STRUCTURED} | insert-quantizers{{values=int8}} | choose-scales | pack-nm{{values=int8}}",
    ),
    Recipe(
        "packed-int4",
        "2:4 in int4 for the N:M kernels: the branches are trained on the rounded program",
        _PACKED_INT4,
    ),
    Recipe(
        "packed-int4-ends",
        "as packed-int4, and the embeddings and the head in int4 too: small as a whole",
        f"{_PACKED_INT4} | insert-quantizers{{values=int4 group=32 ends=true}} | "
        "choose-scales{by=mse} | pack-dense",
    ),
)
