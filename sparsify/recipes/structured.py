"""Recipes that remove heads, channels or layers."""

from sparsify.recipes.recipe import Recipe

_GROUPS = "insert-masks{of=heads,channels}"
_SMALLER = "prune-heads | prune-channels"
_HEALED = (
    "insert-lora{rank=32 alpha=32.0} | "
    "train{steps=150 batch=8 lr=0.006 update=lora task=0.0 distill=kl} | fold-lora"
)


RECIPES = (
    Recipe(
        "structured",
        "half of the heads and channels removed, recovered by low-rank branches, physically smaller",
        "insert-masks{of=heads,channels} | choose-masks{of=heads score=taylor sparsity=0.5} | "
        "choose-masks{of=channels score=taylor sparsity=0.5 multiple=8} | prune-heads | "
        "prune-channels | insert-lora{rank=32 alpha=32.0} | "
        "train{steps=150 batch=8 lr=0.006 update=lora task=0.0 distill=kl} | fold-lora",
    ),
    Recipe(
        "flap",
        "a fifth of what heads and channels hold, what fluctuates least first, its mean kept as a bias; "
        "layers end up uneven; no retraining",
        f"insert-probes | calibrate{{samples=1024}} | {_GROUPS} | "
        "choose-masks{of=heads,channels score=fluctuation sparsity=0.2 scope=global} | insert-bias | "
        f"choose-bias | remove-probes | fold-bias | {_SMALLER}",
    ),
    Recipe(
        "wanda-sp",
        "a quarter of the heads and channels of every layer by size times input norm, no retraining",
        f"insert-probes | calibrate | {_GROUPS} | "
        "choose-masks{of=heads,channels score=wanda sparsity=0.25} | remove-probes | "
        f"{_SMALLER}",
    ),
    Recipe(
        "llm-pruner",
        "a quarter of the heads and channels of every layer by first and second order of the loss, "
        "recovered by low-rank branches",
        f"{_GROUPS} | choose-masks{{of=heads,channels score=mixed sparsity=0.25 samples=10}} | "
        f"{_SMALLER} | {_HEALED}",
    ),
    Recipe(
        "minitron",
        "heads and channels (width) by the size of their activations, half of them, all weights distilled",
        f"insert-probes | calibrate{{samples=1024}} | {_GROUPS} | "
        "choose-masks{of=heads,channels score=activation sparsity=0.5 multiple=8} | remove-probes | "
        f"{_SMALLER} | train{{steps=400 batch=8 lr=0.001 warmup=0.1 task=0.0 distill=kl}}",
    ),
    Recipe(
        "shortgpt",
        "a quarter of the layers, those that turn the stream least, no retraining",
        "insert-masks{of=layers} | choose-masks{of=layers score=influence sparsity=0.25} | prune-layers",
    ),
    Recipe(
        "encoder",
        "an encoder with half of its heads and channels, distilled from the dense one on plain sentences",
        "insert-probes | calibrate | insert-masks{of=heads,channels} | "
        "choose-masks{of=heads score=wanda sparsity=0.5} | "
        "choose-masks{of=channels score=wanda sparsity=0.5 multiple=8} | remove-probes | "
        "prune-heads | prune-channels | "
        "train{steps=200 batch=16 lr=0.0003 task=0.0 distill=squared}",
    ),
)
