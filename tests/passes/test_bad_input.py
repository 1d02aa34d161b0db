"""What a user may get wrong, and the whole sentence that says so before anything runs."""

import pytest
import torch

from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, OptionError, PipelineError, SparsifyError
from sparsify.ir.text import to_text

MASKS = "insert-masks | "
HEADS = "insert-masks{of=heads} | "
EITHER = "choose either a sparsity, as in sparsity=0.5, or a pattern, as in 2:4"

# Pipeline, what the sentence says after `pass 2 of 2, '<text of the pass>', `.
CHOICES = [
    ("pattern=half", "pattern 'half' is not N:M (N kept of every M), as in 2:4"),
    ("pattern=2-4", "pattern '2-4' is not N:M (N kept of every M), as in 2:4"),
    ("pattern=4:4", "pattern 4:4 prunes nothing: N must be below M, as in 2:4"),
    ("pattern=5:4", "pattern 5:4 prunes nothing: N must be below M, as in 2:4"),
    ("pattern=0:4", "pattern 0:4 keeps nothing: N must be at least 1, as in 2:4"),
    (
        "pattern=2:5",
        "pattern 2:5 does not fit @up.weight: its axis of 8 is no multiple of 5",
    ),
    ("sparsity=1.5", "sparsity 1.5 is not in [0, 1)"),
    ("sparsity=1.0", "sparsity 1.0 is not in [0, 1)"),
    ("sparsity=-0.1", "sparsity -0.1 is not in [0, 1)"),
    ("sparsity=0.5 pattern=2:4", EITHER),
    (
        "sparsity=0.5 targets=dwn",
        "the target 'dwn' matches no linear; did you mean 'down'?",
    ),
    (
        "sparsity=0.5 ignore=nothing.*",
        "the target 'nothing.*' matches no linear; there are: down, head, up",
    ),
    (
        "sparsity=0.5 score=activation",
        "score=activation is for channels and heads; use wanda for weights",
    ),
    ("sparsity=0.5 multiple=0", "multiple=0 must be at least 1"),
]


def refusal(kind, pipeline, program, data=None):
    """The sentence; the program must be as it was."""
    before = to_text(program)
    with pytest.raises(kind) as caught:
        parse(pipeline).run(program, Context(data=data))
    assert to_text(program) == before
    assert program.log == []
    return str(caught.value)


@pytest.mark.parametrize(("options", "sentence"), CHOICES)
def test_choices_that_cannot_be_meant(options, sentence, traced):
    text = f"choose-masks{{{options}}}"
    if "activation" in options:
        text = f"insert-probes | insert-masks | calibrate | {text}"
        where, data = "pass 4 of 4", TextData(torch.arange(24), 12)
    else:
        text, where, data = MASKS + text, "pass 2 of 2", None
    found = refusal(OptionError, text, traced("mlp"), data)
    assert found.startswith(f"{where}, 'choose-masks")
    assert found.endswith(f"', {sentence}")


def test_a_choice_without_an_amount_names_the_ways_to_give_one(traced):
    found = refusal(PipelineError, f"{MASKS}choose-masks", traced("mlp"))
    assert found.endswith(
        "needs ['shares'], but at that point the program has ['mask.weights']; "
        f"{EITHER}, or put allocate-sparsity before it"
    )


@pytest.mark.parametrize(
    ("options", "kind"), [("pattern=2:4", "heads"), ("pattern=2:4", "channels")]
)
def test_patterns_are_for_weights(options, kind, traced):
    text = f"insert-masks{{of={kind}}} | choose-masks{{of={kind} {options}}}"
    name = "block" if kind == "heads" else "mlp"
    found = refusal(OptionError, text, traced(name))
    assert found.endswith(f"a pattern or score=sparsegpt is for weights, not for {kind}")


GROUPS = [
    ("of=weights,heads", "of=weights,heads mixes weights with groups; choose them in two passes"),
    ("of=heads,heads sparsity=0.5", "of=heads,heads names one kind twice"),
    (
        "of=heads sparsity=0.5 normalise=mean",
        "normalise is for scope=global; elsewhere layers are not compared",
    ),
    ("sparsity=0.5 score=mixed", "score=mixed is for channels and heads; use taylor for weights"),
    (
        "sparsity=0.5 normalise=mean",
        "to and normalise are for channels and heads, not for weights",
    ),
    (
        "of=heads sparsity=0.5 to=shape{heads=2}",
        "to says every size, so that sparsity, scope and multiple have no place",
    ),
    (
        "of=heads,channels to=shape{heads=2}",
        "of=heads,channels and to=shape{heads=2} must name the same kinds",
    ),
    (
        "of=channels to=shape{channels=13}",
        "channels=13 cannot be kept of the 12 channels that the program has",
    ),
    (
        "of=heads to=shape{heads=0}",
        "heads=0 cannot be kept of the 4 heads that the program has",
    ),
    ("of=heads,channels", EITHER),
]


@pytest.mark.parametrize(("options", "sentence"), GROUPS)
def test_choices_of_groups_that_cannot_be_meant(options, sentence, traced, tokens):
    text = f"insert-masks{{of=heads,channels,weights}} | choose-masks{{{options}}}"
    found = refusal(OptionError, text, traced("block"), tokens)
    assert found.startswith("pass 2 of 2, 'choose-masks")
    assert found.endswith(f"', {sentence}")


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (
            "insert-lora{rank=8}",
            "pass 1 of 1, 'insert-lora', rank=8 does not fit @query.weight; it must be 1 to 7",
        ),
        (
            "insert-lora{rank=0}",
            "pass 1 of 1, 'insert-lora{rank=0}', rank=0 does not fit @query.weight; it must be 1 to 7",
        ),
        (
            "insert-masks{targets=qery}",
            "pass 1 of 1, 'insert-masks{targets=qery}', the target 'qery' matches no linear; "
            "did you mean 'query'?",
        ),
    ],
)
def test_options_that_do_not_fit_the_program(pipeline, sentence, traced):
    assert refusal(SparsifyError, pipeline, traced("block")) == sentence


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        ("calibrate{samples=0}", "samples=0 and batch=8 must be at least 1"),
        ("train{steps=0}", "steps, batch, accumulate, save_every and lr must be positive"),
        ("train{steps=1 lr=-1.0}", "steps, batch, accumulate, save_every and lr must be positive"),
        ("train{steps=1 warmup=3.0}", "warmup=3.0 is a fraction of the steps, from 0 to 1"),
        ("train{steps=1 task=0}", "task=0 without distill leaves no loss"),
        ("train{steps=1 distill=kl{temperature=0.0}}", "temperature=0.0 must be positive"),
    ],
)
def test_numbers_out_of_range(pipeline, sentence, traced, tokens):
    found = refusal(OptionError, f"insert-probes | {pipeline}", traced("block"), tokens)
    assert found.startswith("pass 2 of 2, '")
    assert found.endswith(f"', {sentence}")


def test_groups_that_the_program_does_not_have(traced):
    assert refusal(OptionError, "insert-masks{of=heads}", traced("mlp")) == (
        "pass 1 of 1, 'insert-masks{of=heads}', the program has no prunable heads; "
        "`sparsify-fx show MODEL --axes` says why"
    )


@pytest.mark.parametrize("step", ["calibrate", "train{steps=1}"])
def test_missing_data_is_found_before_the_first_pass(step, traced):
    assert refusal(PipelineError, f"insert-probes | {step}", traced("block")) == (
        f"pass 2 of 2, '{step}', needs data; give --data, or Context(data=...)"
    )


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (
            "choose-masks{sparsity=0.1}",
            "needs ['mask.weights'], but at that point the program has []",
        ),
        (
            "insert-lora{rank=2} | insert-lora{rank=2}",
            "would add ['lora'], which the program already has",
        ),
        (
            "insert-masks | choose-masks{score=wanda sparsity=0.5}",
            "needs ['stats'], but at that point the program has ['mask.weights']",
        ),
        (
            "insert-masks | fold-masks | choose-masks{sparsity=0.5}",
            "needs ['mask.weights'], but at that point the program has []",
        ),
    ],
)
def test_passes_that_do_not_fit_each_other(pipeline, sentence, traced):
    count = pipeline.count("|") + 1
    last = str(parse(pipeline).passes[-1])
    assert refusal(PipelineError, pipeline, traced("mlp")) == (
        f"pass {count} of {count}, '{last}', {sentence}"
    )


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        ("insert-maks", "no pass is called 'insert-maks'; did you mean 'insert-masks'?"),
        ("insert-lora{rnk=4}", "'insert-lora' has no option 'rnk'; did you mean 'rank'?"),
        (
            "fold-masks{of=weigths}",
            "fold-masks{of} cannot be 'weigths'; it takes weights|convolutions|channels|heads",
        ),
        ("insert-lora{rank=four}", "insert-lora{rank} cannot be 'four'; it takes int"),
        ("insert-lora{rank=4,5}", "insert-lora{rank} takes one value, not 2"),
        ("train", "'train' needs the option 'steps'"),
        (
            "choose-masks{score=hessian}",
            "choose-masks{score} cannot be 'hessian'; "
            "it takes magnitude|wanda|ria|dsnot|sparsegpt|alps|activation|fluctuation|taylor|first-order|"
            "second-order|mixed|influence|frequency|router",
        ),
        (
            "train{steps=1 distill=kl{temprature=2.0}}",
            "'kl' has no option 'temprature'; did you mean 'temperature'?",
        ),
        (
            "train{steps=1 distill=mse}",
            "train{distill} cannot be 'mse'; it takes kl{}|squared{}|none",
        ),
    ],
)
def test_words_that_nobody_knows(pipeline, sentence):
    with pytest.raises(SparsifyError) as caught:
        parse(pipeline)
    assert str(caught.value) == sentence


def test_a_ratio_that_removes_nothing(traced):
    with pytest.raises(OptionError) as caught:
        parse(HEADS + "choose-masks{of=heads sparsity=0.2}").run(traced("block"))
    assert str(caught.value) == (
        "pass 2 of 2, 'choose-masks{of=heads sparsity=0.2}': a sparsity of 0.2 with rule=groups and "
        "multiple=1 removes nothing from sizes [4]; raise it or change the rule"
    )


def test_a_ratio_that_would_leave_nothing_leaves_one_head(traced):
    program = parse(HEADS + "choose-masks{of=heads sparsity=0.99} | prune-heads").run(
        traced("block")
    )
    assert program.tensor("query.weight").shape == (4, 8)


@pytest.mark.parametrize(
    "pipeline", ["insert-masks{of=heads,heads}", "insert-masks{of=weights,weights}"]
)
def test_a_kind_of_mask_named_twice(pipeline, traced):
    found = refusal(OptionError, pipeline, traced("block"))
    assert found == f"pass 1 of 1, '{pipeline}', {pipeline[13:-1]} names one kind twice"


def test_group_masks_under_a_branch_are_not_folded(traced):
    with pytest.raises(
        OptionError, match=r"@down.weight has a branch under its mask; put fold-lora first"
    ):
        parse("insert-masks{of=channels} | insert-lora{rank=2} | fold-masks{of=channels}").run(
            traced("mlp")
        )


def test_statistics_that_were_never_taken(traced, tokens):
    with pytest.raises(SparsifyError) as caught:
        parse(
            "insert-probes{targets=out} | calibrate | insert-masks | "
            "choose-masks{score=wanda sparsity=0.5}"
        ).run(traced("block"), Context(data=tokens))
    assert str(caught.value).endswith(
        "the input of @query.weight has no probe; widen the targets of insert-probes"
    )


def test_sparsegpt_without_gram(traced, tokens):
    with pytest.raises(
        OptionError, match=r"sparsegpt needs insert-probes\{gram=true\} at the input of"
    ):
        parse(
            "insert-probes | calibrate | insert-masks | choose-masks{score=sparsegpt pattern=2:4}"
        ).run(traced("block"), Context(data=tokens))


def test_a_branch_over_a_mask_must_be_folded_first(traced):
    with pytest.raises(SparsifyError, match="has a branch under its mask; put fold-lora first"):
        parse("insert-masks | insert-lora{rank=2} | fold-masks").run(traced("mlp"))


def test_data_without_labels(traced):
    data = TensorData({"input_ids": torch.zeros(4, 6, dtype=torch.long)})
    with pytest.raises(DataError, match="the data has no labels; train by distillation only"):
        parse("train{steps=1}").run(traced("block"), Context(data=data))


def test_nothing_to_train(traced, tokens):
    with pytest.raises(PipelineError) as caught:
        parse("train{steps=1 update=lora}").run(traced("block"), Context(data=tokens))
    assert str(caught.value) == (
        "pass 1 of 1, 'train{steps=1 update=lora}', needs ['lora'], but at that point the program has []"
    )
