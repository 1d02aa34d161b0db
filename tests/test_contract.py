"""The laws, over every pass of the catalogue: a new pass is tested before its author writes a test."""

import pytest
import torch

import passes
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify

FAMILIES = ["llama", "gpt2", "bert"]
# What must run before a pass, and the pass itself with options that make it do something.
SETTINGS = {
    "insert-probes": ("", "insert-probes{gram=true}"),
    "calibrate": ("insert-probes", "calibrate{samples=6 batch=4}"),
    "insert-masks": ("", "insert-masks{of=weights,channels,heads}"),
    "choose-masks": ("insert-masks", "choose-masks{pattern=2:4}"),
    "remove-probes": ("insert-probes | calibrate{samples=6}", "remove-probes"),
    "insert-lora": ("insert-masks | choose-masks{pattern=2:4}", "insert-lora{rank=4}"),
    "train": ("insert-lora{rank=4}", "train{steps=2 batch=2 update=lora TRAIN}"),
    "fold-lora": ("insert-lora{rank=4} | train{steps=2 batch=2 TRAIN}", "fold-lora"),
    "fold-masks": ("insert-masks | choose-masks{sparsity=0.5}", "fold-masks"),
    "prune-heads": ("insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5}", "prune-heads"),
    "prune-channels": (
        "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}", "prune-channels",
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
]
LEARNING = ("calibrate", "allocate", "choose", "train")
NAMES = [item.name for item in passes.ALL]


@pytest.fixture
def context(text):
    return Context(data=text, seed=3)


def settings(name, family):
    words = "task=0.0 distill=squared" if family == "bert" else ""
    return tuple(part.replace(" TRAIN", f" {words}".rstrip()) for part in SETTINGS[name])


def prepared(name, family, traced, context):
    before, step = settings(name, family)
    program = traced(family)
    if before:
        parse(before).run(program, context)
    return program, parse(step)


def weights(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[path], two[path]) for path in one)


def moved(before, after):
    return max(
        float((a - b).abs().max()) / float(a.abs().max())
        for a, b in zip(before, after, strict=True)
    )


def test_every_pass_has_settings_here():
    assert set(SETTINGS) == set(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_laws_one_two_and_four(name, family, traced, context):
    """Graph or function, never both; a verified program; features true; no second insert."""
    program, step = prepared(name, family, traced, context)
    (item,) = step.passes
    effect = item.effect()
    text, outputs, tensors = to_text(program), program.run(), weights(program)
    features = program.features
    places = item.rewrite(program, context)
    program.features = effect.after(features)
    program.module.recompile()
    verify(program)
    after = program.run()
    assert places > 0
    assert effect.needs <= features
    assert not effect.adds & features
    if name.startswith(LEARNING):
        assert not item.moves.graph
        assert to_text(program) == text
        assert not same(weights(program), tensors)
    else:
        assert item.moves.graph
        assert moved(outputs, after) <= item.moves.tolerance
        assert to_text(program) != text or name == "fold-masks"
    if effect.adds:
        with pytest.raises(PipelineError, match="would add .*, which the program already has"):
            step.check(program, context)
    if effect.drops:
        with pytest.raises(PipelineError, match="needs .*, but at that point the program has"):
            step.check(program, context)


@pytest.mark.parametrize("name", NAMES)
def test_bitwise_passes_move_no_bit_and_state_it(name, traced, context):
    program, step = prepared(name, "llama", traced, context)
    before = program.run()
    step.run(program, context)
    if name.startswith(("insert", "remove")):
        assert step.passes[0].moves.tolerance == 0
        assert all(torch.equal(a, b) for a, b in zip(before, program.run(), strict=True))
    elif not name.startswith(LEARNING):
        assert 0 < step.passes[0].moves.tolerance <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pipeline", ROUND_TRIPS)
def test_law_four_what_inserts_can_be_taken_out_again(pipeline, family, traced, context):
    program = traced(family)
    text, paths = to_text(program), set(weights(program))
    parse(pipeline).run(program, context)
    assert to_text(program) == text
    assert set(weights(program)) == paths
    assert not program.features & {"lora", "probe", "stats", "mask.weights"}


@pytest.mark.parametrize("name", NAMES)
def test_law_five_same_seed_same_program(name, traced, context):
    one, step = prepared(name, "llama", traced, context)
    two, _ = prepared(name, "llama", traced, context)
    step.run(one, context)
    step.run(two, context)
    assert to_text(one) == to_text(two)
    assert same(weights(one), weights(two))
    assert one.plan == two.plan


@pytest.mark.parametrize("name", ["insert-lora", "train", "calibrate"])
def test_another_seed_is_felt(name, traced, context):
    one, step = prepared(name, "llama", traced, context)
    two, _ = prepared(name, "llama", traced, context)
    step.run(one, context)
    step.run(two, Context(data=context.data, seed=4))
    assert not same(weights(one), weights(two))


@pytest.mark.parametrize("name", NAMES)
def test_no_pass_draws_from_or_moves_the_global_generator(name, traced, context):
    one, step = prepared(name, "llama", traced, context)
    two, _ = prepared(name, "llama", traced, context)
    torch.manual_seed(1)
    step.run(one, context)
    first = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(first, torch.get_rng_state())
    torch.manual_seed(2)
    step.run(two, context)
    assert same(weights(one), weights(two))


@pytest.mark.parametrize("name", NAMES)
def test_law_six_the_text_of_a_pass_is_the_pass_and_is_logged(name, traced, context):
    program, step = prepared(name, "llama", traced, context)
    done = list(program.log)
    assert parse(str(step)) == step
    step.run(program, context)
    assert program.log == [*done, str(step.passes[0])]


@pytest.mark.parametrize("name", NAMES)
def test_law_three_a_pipeline_that_cannot_end_does_not_begin(name, traced, context):
    before, step = settings(name, "llama")
    program = traced("llama")
    text, tensors = to_text(program), weights(program)
    pipeline = parse(" | ".join(part for part in (before, step, "insert-masks | insert-masks") if part))
    with pytest.raises(PipelineError, match="would add"):
        pipeline.run(program, context)
    assert to_text(program) == text
    assert same(weights(program), tensors)


@pytest.mark.parametrize("item", passes.ALL, ids=lambda item: item.name)
def test_verbs_say_what_moves(item):
    verb = item.name.split("-")[0]
    assert verb in {"insert", "remove", "calibrate", "allocate", "choose", "train", "fold", "prune", "pack"}
    assert item.moves.graph == (verb not in LEARNING)
    assert (item.moves.graph and item.moves.tolerance == 0) == (verb in {"insert", "remove"})
