"""The laws, over every pass of the catalogue: a new pass is tested before its author writes a test."""

from dataclasses import replace

import pytest
import torch

import passes
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify
from sparsify.tensors.precision import largest_difference

FAMILIES = ["block", "llama", "bert"]
# What must run before a pass, and the pass itself with options that make it do something.
SETTINGS = {
    "insert-probes": ("", "insert-probes{gram=true}"),
    "calibrate": ("insert-probes", "calibrate{samples=6 batch=4}"),
    "insert-masks": ("", "insert-masks{of=weights,channels,heads}"),
    "allocate-sparsity": ("insert-masks", "allocate-sparsity{by=rmi samples=8}"),
    "allocate-ranks": (
        "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=3} | train{steps=2 batch=2 TRAIN}",
        "allocate-ranks{mean=2 largest=4 samples=4}",
    ),
    "choose-clusters": (
        "insert-probes{of=routers} | calibrate{samples=6}", "choose-clusters{experts=3}",
    ),
    "merge-experts": (
        "insert-probes{of=routers} | calibrate{samples=6} | choose-clusters{experts=3} | remove-probes",
        "merge-experts",
    ),
    "permute-channels": ("insert-probes | calibrate{samples=6}", "permute-channels"),
    "choose-masks": ("insert-masks", "choose-masks{pattern=2:4}"),
    "remove-probes": ("insert-probes | calibrate{samples=6}", "remove-probes"),
    "choose-tensors": ("", "choose-tensors{rank=2}"),
    "split-linears": ("choose-tensors{rank=2}", "split-linears"),
    "insert-lora": ("insert-masks | choose-masks{pattern=2:4}", "insert-lora{rank=2}"),
    "insert-slorb": ("insert-masks | choose-masks{pattern=2:4}", "insert-slorb{k=4}"),
    "insert-scales": ("insert-masks | choose-masks{pattern=2:4}", "insert-scales"),
    "fold-scales": ("insert-masks | insert-scales | train{steps=2 batch=2 TRAIN}", "fold-scales"),
    "insert-bias": (
        "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5}", "insert-bias",
    ),
    "choose-bias": (
        "insert-probes | calibrate{samples=6} | insert-masks{of=heads,channels} | "
        "choose-masks{of=heads,channels sparsity=0.5} | insert-bias",
        "choose-bias",
    ),
    "fold-bias": (
        "insert-probes | calibrate{samples=6} | insert-masks{of=heads,channels} | "
        "choose-masks{of=heads,channels sparsity=0.5} | insert-bias | choose-bias",
        "fold-bias",
    ),
    "insert-adapters": ("insert-masks | choose-masks{pattern=2:4}", "insert-adapters{ratio=0.3}"),
    "choose-adapters": (
        "insert-probes | calibrate{samples=6} | insert-masks | choose-masks{pattern=2:4} | "
        "insert-adapters{ratio=0.3}",
        "choose-adapters",
    ),
    "choose-slorb": ("insert-masks | choose-masks{pattern=2:4} | insert-slorb{k=4}", "choose-slorb"),
    "insert-omission": ("", "insert-omission{multiple=4}"),
    "remove-omission": ("insert-omission{multiple=4}", "remove-omission"),
    "train": ("insert-lora{rank=2}", "train{steps=2 batch=2 update=lora TRAIN}"),
    "insert-neighbours": ("", "insert-neighbours{size=16 k=4}"),
    "choose-neighbours": (
        "insert-neighbours{size=16 k=4 values=dense}", "choose-neighbours{by=dense temperature=0.1}",
    ),
    "insert-prompt": ("", "insert-prompt{tokens=3}"),
    "choose-prompt": ("insert-prompt{tokens=3}", "choose-prompt"),
    "fold-prompt": ("insert-prompt{tokens=3} | choose-prompt", "fold-prompt"),
    "insert-experts": ("insert-lora{rank=2}", "insert-experts{experts=3 rank=2}"),
    "fold-adapters": (
        "insert-probes | calibrate{samples=6} | insert-masks | choose-masks{pattern=2:4} | "
        "insert-adapters{ratio=0.3} | choose-adapters | remove-probes | fold-masks",
        "fold-adapters",
    ),
    "allocate-values": ("insert-masks | choose-masks{pattern=2:4}", "allocate-values{bytes=9 samples=4}"),
    "insert-quantizers": ("insert-masks | insert-lora{rank=2}", "insert-quantizers{values=int4}"),
    "choose-scales": ("insert-quantizers", "choose-scales{by=mse}"),
    "remove-quantizers": ("insert-quantizers", "remove-quantizers"),
    "fold-quantizers": ("insert-quantizers{activations=false} | choose-scales", "fold-quantizers"),
    "pack-nm": (
        "insert-masks | choose-masks{pattern=2:4} | fold-masks | insert-quantizers | choose-scales",
        "pack-nm{values=int8}",
    ),
    "pack-dense": (
        "insert-quantizers{values=int4 group=32 ends=true} | choose-scales{by=mse}",
        "pack-dense",
    ),
    "fold-lora": ("insert-lora{rank=2} | train{steps=2 batch=2 TRAIN}", "fold-lora"),
    "fold-masks": ("insert-masks | choose-masks{sparsity=0.5}", "fold-masks"),
    "prune-heads": ("insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5}", "prune-heads"),
    "prune-channels": (
        "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}", "prune-channels",
    ),
    "prune-experts": (
        "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5}", "prune-experts",
    ),
    "prune-hidden": (
        "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.25}", "prune-hidden",
    ),
    "prune-layers": (
        "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.5}", "prune-layers{of=blocks}",
    ),
}  # fmt: skip
# Inserting and what takes it out again: the text must come back.
ROUND_TRIPS = [
    "insert-probes | remove-probes",
    "insert-probes{gram=true} | calibrate{samples=4} | remove-probes",
    "insert-masks | fold-masks",
    "insert-masks | choose-masks{sparsity=0.5} | fold-masks",
    "insert-masks{of=channels,heads} | fold-masks{of=channels,heads}",
    "insert-lora{rank=2} | fold-lora",
    "insert-masks | insert-lora{rank=2} | fold-lora | fold-masks",
    "insert-lora{rank=2} | insert-masks | fold-lora | fold-masks",
    "insert-probes | insert-masks{of=heads} | remove-probes | fold-masks{of=heads}",
    "insert-masks{of=layers} | prune-layers",
    "insert-masks{of=layers,blocks} | prune-layers | prune-layers{of=blocks}",
    "insert-masks{of=hidden} | prune-hidden",
    "insert-masks{of=heads,hidden,layers} | prune-hidden | prune-layers | fold-masks{of=heads}",
    "insert-quantizers | remove-quantizers",
    "insert-quantizers{ends=true} | remove-quantizers",
    "insert-masks{of=heads,channels} | insert-bias | fold-bias | fold-masks{of=heads,channels}",
    "insert-scales | fold-scales",
    "insert-omission{multiple=4} | remove-omission",
    "insert-omission{multiple=4 form=zero} | remove-omission",
    "insert-quantizers | insert-scales | insert-masks | fold-scales | remove-quantizers | fold-masks",
    "insert-masks | insert-lora{rank=2} | insert-scales | fold-lora | fold-scales | fold-masks",
    "insert-lora{rank=2} | insert-quantizers | insert-masks | fold-lora | remove-quantizers | fold-masks",
    "insert-quantizers | insert-masks | insert-lora{rank=2} | fold-lora | fold-masks | remove-quantizers",
    "insert-probes | insert-quantizers | remove-probes | insert-probes | remove-quantizers | remove-probes",
]
LEARNING = ("calibrate", "allocate", "choose", "train")
VERBS = {"insert", "remove", "fold", "prune", "pack", "permute", "merge", "split", *LEARNING}
NAMES = [item.name for item in passes.ALL]
OF_EXPERTS = {"choose-clusters", "merge-experts", "prune-experts"}
OF_PROMPTS = {"insert-prompt", "choose-prompt", "fold-prompt"}
# Sums over keys that weigh nothing are longer sums, and round otherwise.
ROUNDED = {"insert-prompt"}


@pytest.fixture
def context(family, text, tokens):
    return Context(data=tokens if family == "block" else text, seed=3)


@pytest.fixture(scope="module")
def ready():
    """Programs on which a pass can run, made once."""
    return {}


def settings(name, family):
    words = "task=0.0 distill=squared" if family == "bert" else ""
    return tuple(part.replace(" TRAIN", f" {words}".rstrip()) for part in SETTINGS[name])


def home(name, family):
    """The model that a pass is shown on: one of a family, or the one that has what it needs."""
    if name == "allocate-values" and family == "bert":
        return "gpt2"
    if name in OF_PROMPTS:
        return "llama" if family == "llama" else "gpt2"
    return "routed" if name in OF_EXPERTS else family


@pytest.fixture
def prepare(family, traced, context, ready):
    """A program of its own on which a pass can run, and the pass as a pipeline."""

    def make(name):
        before, step = settings(name, family)
        if (name, family) not in ready:
            program = traced(home(name, family))
            ready[name, family] = parse(before).run(program, context) if before else program
        return ready[name, family].clone(), parse(step)

    return make


def weights(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[path], two[path]) for path in one)


def test_every_pass_has_settings_here():
    assert set(SETTINGS) == set(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_laws_one_two_and_four(name, prepare, context):
    """Graph or function, never both; a verified program; features true; no second insert."""
    program, step = prepare(name)
    (item,) = step.passes
    effect = item.effect()
    text, outputs, tensors = to_text(program), program.run(), weights(program)
    plan = dict(program.plan)
    features = program.features
    places = item.rewrite(program, replace(context, dense=program.clone()))
    program.features = effect.after(features)
    program.module.recompile()
    verify(program)
    assert places > 0
    assert effect.needs <= features
    assert not effect.adds & features
    if name.startswith(LEARNING):
        assert not item.moves.graph
        assert to_text(program) == text
        assert not same(weights(program), tensors) or program.plan != plan
    else:
        assert item.moves.graph
        assert largest_difference(outputs, program.run()) <= item.limits().tolerance
        if name.startswith("permute"):
            assert to_text(program) == text
            assert not same(weights(program), tensors)
        else:
            assert to_text(program) != text
    if effect.adds:
        with pytest.raises(PipelineError, match=r"would add .*, which the program already has"):
            step.check(program, context)
    assert not effect.bars & features
    if effect.drops:
        with pytest.raises(PipelineError, match=r"needs .*, but at that point the program has"):
            step.check(program, context)


@pytest.mark.parametrize("family", ["block", "gpt2"])
@pytest.mark.parametrize("pipeline", ROUND_TRIPS)
def test_law_four_what_inserts_can_be_taken_out_again(pipeline, family, traced, context):
    program = traced(family)
    text, paths = to_text(program), set(weights(program))
    parse(pipeline).run(program, context)
    assert to_text(program) == text
    assert set(weights(program)) == paths
    assert program.features == frozenset()


@pytest.mark.parametrize("family", ["block"])
@pytest.mark.parametrize("name", NAMES)
def test_laws_five_and_six(name, prepare, context):
    """Same seed, same program, whatever the global generator holds; a pass is its text and is logged."""
    (one, step), (two, _) = prepare(name), prepare(name)
    done, before = list(one.log), one.run()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    step.run(one, context)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    step.run(two, context)
    assert to_text(one) == to_text(two)
    assert same(weights(one), weights(two))
    assert one.plan == two.plan
    assert parse(str(step)) == step
    assert one.log == [*done, str(step.passes[0])]
    if name.startswith(("insert", "remove")) and name not in ROUNDED:
        assert all(torch.equal(a, b) for a, b in zip(before, one.run(), strict=True))


@pytest.mark.parametrize("family", ["block"])
@pytest.mark.parametrize("name", ["insert-lora", "train", "calibrate"])
def test_another_seed_is_felt(name, prepare, context):
    (one, step), (two, _) = prepare(name), prepare(name)
    step.run(one, context)
    step.run(two, replace(context, seed=4))
    assert not same(weights(one), weights(two))


@pytest.mark.parametrize("family", ["block"])
@pytest.mark.parametrize("name", NAMES)
def test_law_three_a_pipeline_that_cannot_end_does_not_begin(name, traced, context):
    before, step = settings(name, "block")
    program = traced(home(name, "block"))
    text, tensors = to_text(program), weights(program)
    end = "insert-masks{of=heads} | insert-masks{of=heads}"
    with pytest.raises(PipelineError, match=r"would add|put (remove-omission|it) before"):
        parse(" | ".join(part for part in (before, step, end) if part)).run(program, context)
    assert to_text(program) == text
    assert same(weights(program), tensors)


@pytest.mark.parametrize("item", passes.ALL, ids=lambda item: item.name)
def test_verbs_say_what_moves(item):
    verb = item.name.split("-")[0]
    assert verb in VERBS
    assert item.moves.graph == (verb not in LEARNING)
    assert item.moves.tolerance <= (0.05 if verb == "pack" else 1e-5)
    assert item.moves.graph or item.moves.tolerance == 0
    bitwise = verb in {"insert", "remove"} and item.name not in ROUNDED
    assert (item.moves.graph and item.moves.tolerance == 0) == bitwise
