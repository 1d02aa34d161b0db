"""Recipes for mixtures of experts."""

from sparsify.recipes.recipe import Recipe

_ROUTED = "insert-probes{of=routers} | calibrate{samples=128}"


RECIPES = (
    Recipe(
        "pesc",
        "small experts behind every feed-forward block, learnt from dialogues (--kind chat) with low-rank "
        "branches on all else, which fold; experts and routers stay (PESC)",
        "insert-lora{rank=64 alpha=16.0} | insert-experts{rank=64 scale=0.25} | "
        "train{steps=200 batch=16 lr=0.0002 schedule=constant warmup=0.03 update=experts balance=0.01} | "
        "fold-lora",
    ),
    Recipe(
        "uncurl",
        "half of the experts of a mixture, by clusters of what its routers say on text of the task, each "
        "aligned and merged by use; routers as they were (UNCURL)",
        f"{_ROUTED} | choose-clusters{{sparsity=0.5}} | remove-probes | merge-experts",
    ),
    Recipe(
        "uncurl-sliced",
        "as uncurl, routers losing the rows of merged experts: another function, in a shape that configs "
        "can say",
        f"insert-masks{{of=experts}} | {_ROUTED} | choose-clusters{{sparsity=0.5 gates=sliced}} | "
        "remove-probes | prune-experts",
    ),
)
