"""Recipes: named pipelines, as text and nothing else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsify.errors import PipelineError, nearest
from sparsify.plugins import RECIPES as OFFERED
from sparsify.plugins import plugins
from sparsify.tensors.allocation import cubic
from sparsify.text.syntax import Call, parse_calls


@dataclass(frozen=True)
class Recipe:
    """A pipeline with a name and one sentence on what comes out.

    `options` have to be given with the name, `sheared{layers=4 ...}`; in the text they stand in capitals.
    """

    name: str
    about: str
    text: str
    options: tuple[str, ...] = ()


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
_GROUPS = "insert-masks{of=heads,channels}"
_SMALLER = "prune-heads | prune-channels"
_HEALED = (
    "insert-lora{rank=32 alpha=32.0} | "
    "train{steps=150 batch=8 lr=0.006 update=lora task=0.0 distill=kl} | fold-lora"
)
# A third of the loss from the text, two thirds from the dense model.
_DISTILLED = "task=0.33 distill=kl{weight=0.67 temperature=2.0}"
_ADAPTED = (
    f"train{{steps=400 batch=16 lr=0.0003 warmup=0.1 {_DISTILLED} "
    "masks=every decay=ars-ste{peak=0.0003}} | fold-masks"
)

_OBSERVED = "insert-probes | calibrate{samples=128}"
_ROUTED = "insert-probes{of=routers} | calibrate{samples=128}"


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


_OMITTED = "insert-omission{of=heads,channels metric=wanda select=topk}"

# Steps and rates suit models of a few million parameters; for billions take lr=0.0002 and more steps.
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
        "magnitude",
        "half of the weights by size, one threshold a layer, no data",
        "insert-masks | choose-masks{score=magnitude sparsity=0.5} | fold-masks",
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
        "pesc",
        "small experts behind every feed-forward block, learnt from dialogues (--kind chat) with low-rank "
        "branches on all else, which fold; experts and routers stay (PESC)",
        "insert-lora{rank=64 alpha=16.0} | insert-experts{rank=64 scale=0.25} | "
        "train{steps=200 batch=16 lr=0.0002 schedule=constant warmup=0.03 update=experts balance=0.01} | "
        "fold-lora",
    ),
    Recipe(
        "sheared",
        "the layers, heads, channels and width that its options say: masks learnt with the weights, what "
        "they leave out removed, and training going on (Sheared LLaMA)",
        "insert-masks{of=layers,heads,channels,hidden} | "
        "train{steps=400 batch=16 lr=0.0005 warmup=0.1 floor=0.1 masks=learned{layers=LAYERS heads=HEADS "
        "channels=CHANNELS hidden=HIDDEN}} | "
        "prune-heads | prune-channels | prune-layers | prune-hidden | "
        "train{steps=400 batch=16 lr=0.001 floor=0.1}",
        ("layers", "heads", "channels", "hidden"),
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


def recipes() -> tuple[Recipe, ...]:
    """Every recipe, those of other packages last; PipelineError for a name that is there twice."""
    every = (*RECIPES, *plugins(OFFERED))
    names = [item.name for item in every]
    for name in names:
        if names.count(name) > 1:
            raise PipelineError(f"two recipes are called '{name}'; remove one of the packages")
    return every


def template(name: str) -> Recipe:
    """The recipe of a name, its options in capitals; PipelineError gives the nearest one."""
    known = {item.name: item for item in recipes()}
    if name not in known:
        raise PipelineError(f"no recipe is called '{name}'{nearest(name, known)}")
    return known[name]


def recipe(text: str) -> Recipe:
    """The recipe that a name, or a name with options as in `sheared{layers=4 ...}`, stands for.

    Raises PipelineError for a name or an option that is not there, and for an option that is missing.
    """
    name, braced, _ = text.partition("{")
    found = template(name)
    call, *others = parse_calls(text) if braced else [Call(name)]
    if others:
        raise PipelineError(f"'{text}' is more than one recipe; give its text as a pipeline")
    return replace(found, text=_filled(found, call.options), options=())


def _filled(item: Recipe, given: Mapping[str, tuple[Call, ...]]) -> str:
    for key in given:
        if key not in item.options:
            raise PipelineError(
                f"recipe '{item.name}' has no option '{key}'{nearest(key, item.options)}"
            )
    filled = item.text
    for key in item.options:
        if key not in given:
            wanted = " ".join(f"{option}=..." for option in item.options)
            raise PipelineError(
                f"recipe '{item.name}' needs '{key}'; write {item.name}{{{wanted}}}"
            )
        value = ",".join(call.name for call in given[key])
        filled = re.sub(rf"\b{key.upper()}\b", value, filled)
    return filled
