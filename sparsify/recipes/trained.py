"""Recipes whose training is the method: AST, CAST, DPF, SAT, LoSA, Sheared LLaMA."""

from sparsify.recipes.recipe import Recipe
from sparsify.tensors.ladder import cubic

_DISTILLED = "task=0.33 distill=kl{weight=0.67 temperature=2.0}"
_ADAPTED = (
    f"train{{steps=400 batch=16 lr=0.0003 warmup=0.1 {_DISTILLED} "
    "masks=every decay=ars-ste{peak=0.0003}} | fold-masks"
)
# Sparsity rises for three quarters of the steps; the masks are frozen in the last one.
_RAMP = "schedule=cubic until=0.75"
_OMITTED = "insert-omission{of=heads,channels metric=wanda select=topk}"


def _losa(sparsity: float, m: str = "", steps: int = 5) -> str:
    """LoSA's ladder as text: sparsity by a cubic rule, mean ranks 12 to 20, one training each."""
    rungs = [
        f"insert-probes{{gram=true}} | calibrate{{samples=128}} | "
        f"allocate-sparsity{{by=rmi sparsity={cubic(t, steps, sparsity):.4f}{m}}} | "
        "choose-masks{score=sparsegpt} | remove-probes | "
        f"allocate-ranks{{mean={10 + 2 * t} largest=32 samples=32}} | "
        "train{steps=120 batch=4 lr=0.001 warmup=0.3 schedule=linear update=lora "
        f"{_DISTILLED}}}"
        for t in range(1, steps + 1)
    ]
    return " | ".join(
        ["insert-masks", "insert-lora{rank=16 alpha=32.0}", *rungs, "fold-lora", "fold-masks"]
    )


RECIPES = (
    Recipe(
        "ast",
        "2:4 by retraining all weights with masks that follow them, distilled from the dense model",
        f"insert-masks | choose-masks{{pattern=2:4}} | {_ADAPTED}",
    ),
    Recipe(
        "ast-boosted",
        "ast with a branch over sums of 16 inputs beside each weight, which stays at export",
        "insert-masks | choose-masks{pattern=2:4} | insert-slorb{k=16} | choose-slorb | "
        f"{_ADAPTED}",
    ),
    Recipe(
        "cast",
        "2:4 by retraining with a dense forward whose masked weights go to zero: the prune is free",
        "insert-masks | insert-scales | train{steps=400 batch=8 lr=0.002 warmup=0.1 "
        f"{_DISTILLED} masks=every decay=adams{{peak=0.001 reach=1.0}}}} | "
        "fold-scales | fold-masks",
    ),
    Recipe(
        "dpf",
        "80 % of all weights by one threshold, masks and sparsity rising while every weight learns (DPF)",
        "insert-masks | train{steps=400 batch=16 lr=0.0005 warmup=0.1 "
        f"masks=every{{steps=16 sparsity=0.8 {_RAMP}}}}} | fold-masks",
    ),
    Recipe(
        "dpf-channels",
        "as dpf, half of what channels hold, ranked over all layers, physically smaller",
        "insert-masks{of=channels} | train{steps=400 batch=16 lr=0.0005 warmup=0.1 "
        f"masks=every{{steps=16 sparsity=0.5 {_RAMP} of=channels}}}} | prune-channels",
    ),
    Recipe(
        "sat-cpt",
        "dense training goes on, faster: half of heads and channels left out of each step, till near the end",
        f"{_OMITTED} | train{{steps=400 batch=16 lr=0.0005 schedule=lors{{rate=0.5 hold=0.8 rungs=5}}}} | "
        "remove-omission",
    ),
    Recipe(
        "sat-sft",
        "sat-cpt with less left out, for dialogues (--kind chat): prompts are read, answers are learnt",
        f"{_OMITTED} | train{{steps=200 batch=16 lr=0.0001 schedule=lors{{rate=0.4 hold=0.7 rungs=5}}}} | "
        "remove-omission",
    ),
    Recipe(
        "losa",
        "70 % unstructured in five steps, layers and ranks by what the model says, masks by SparseGPT, two "
        "thirds of the loss from the dense model, branches merged",
        _losa(0.7),
    ),
    Recipe(
        "losa-n8",
        "as losa, with N of each 8 kept, N by layer, a quarter in all",
        _losa(0.75, " m=8"),
    ),
    Recipe(
        "sheared",
        "the layers, heads, channels and width that its options say: masks learnt with the weights, what "
        "they leave out removed, and training going on (2310.06694)",
        "insert-masks{of=layers,heads,channels,hidden} | "
        "train{steps=400 batch=16 lr=0.0005 warmup=0.1 floor=0.1 "
        "masks=learned{layers=4 heads=4 channels=352 hidden=192 lr=0.5 ramp=0.4}} | "
        "prune-heads | prune-channels | prune-layers | prune-hidden | "
        "train{steps=400 batch=16 lr=0.001 floor=0.1}",
        ("layers", "heads", "channels", "hidden"),
    ),
)
