"""What pack-nm refuses, each in one sentence, with the program left as it was."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.text import to_text

SPARSE = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
SCALES = "insert-quantizers{values=int8 group=32} | choose-scales"


def refused(kind, program, before, step):
    """The sentence without its beginning; text and weights must be as they were."""
    if before:
        parse(before).run(program, Context())
    text, tensors = to_text(program), {p: v.detach().clone() for p, v in program.tensors()}
    with pytest.raises(kind) as caught:
        parse(step).run(program, Context())
    assert to_text(program) == text
    assert all(torch.equal(value, tensors[path]) for path, value in program.tensors())
    where = f"pass {step.count('|') + 1} of {step.count('|') + 1}, '{step.split(' | ')[-1]}'"
    assert str(caught.value).startswith(where)
    return str(caught.value).removeprefix(where).removeprefix(":").removeprefix(",").strip()


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ("pack-nm{pattern=half}", "pattern 'half' is not N:M (N kept of every M), as in 2:4"),
        ("pack-nm{pattern=N:x}", "pattern 'N:x' is not N:M (N kept of every M), as in 2:4"),
        (
            "pack-nm{pattern=3:4}",
            "pattern 3:4 cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can",
        ),
        (
            "pack-nm{pattern=N:16}",
            "pattern N:16 cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can",
        ),
        (
            "pack-nm{group=32}",
            "group is for rounded values: float32 has no scales",
        ),
        (
            "pack-nm{targets=dwn}",
            "the target 'dwn' matches no linear; did you mean 'down'?",
        ),
    ],
)
def test_options_that_cannot_be_meant(step, sentence, traced):
    assert refused(OptionError, traced("mlp"), "", step) == sentence


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (
            "insert-masks | pack-nm",
            "cannot run while the program has ['mask.weights']; put fold-masks before it",
        ),
        (
            "insert-masks | insert-lora{rank=2} | pack-nm",
            "cannot run while the program has ['lora', 'mask.weights']; "
            "put fold-lora | fold-masks before it",
        ),
        (
            "insert-quantizers | choose-scales | pack-nm",
            "cannot run while the program has ['quantizers']; "
            "put it before insert-quantizers; pack-nm takes rounding in with values=rounded",
        ),
        (
            "insert-quantizers | pack-nm{values=int8}",
            "needs ['quantized'], but at that point the program has ['quantizers']",
        ),
    ],
)
def test_pipelines_that_would_end_here_do_not_begin(step, sentence, traced):
    assert refused(PipelineError, traced("mlp"), "", step) == sentence


def test_a_group_that_is_too_full_is_named(traced):
    program = traced("mlp")
    parse(SPARSE).run(program, Context())
    with torch.no_grad():
        program.tensor("down.weight")[5, 8:12] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    assert refused(OptionError, program, "", "pack-nm") == (
        "@down.weight does not have the zeros of 2:4: row 5, columns 8 to 11 hold 3 nonzeros; run "
        "choose-masks{pattern=2:4} | fold-masks before, or leave it out with ignore"
    )


def test_the_group_is_named_in_rows_of_the_map_not_of_the_storage(traced):
    program = traced("gpt2")
    parse(SPARSE).run(program, Context())
    path = "transformer.h.1.mlp.c_fc.weight"
    with torch.no_grad():
        program.tensor(path)[4:8, 7] = 1.0
    found = refused(OptionError, program, "", "pack-nm")
    assert found.startswith(
        f"@{path} does not have the zeros of 2:4: row 7, columns 4 to 7 hold 4 nonzeros"
    )


def test_dense_weights_are_left_alone_unless_named(traced):
    program = traced("mlp")
    parse("insert-masks{targets=up} | choose-masks{targets=up pattern=2:4} | fold-masks").run(
        program
    )
    assert refused(OptionError, program, "", "pack-nm{targets=up,down}").startswith(
        "@down.weight does not have the zeros of 2:4: row 0, columns 0 to 3 hold 4 nonzeros"
    )
    parse("pack-nm").run(program)
    assert not program.has("up.weight")
    assert program.has("down.weight")


@pytest.mark.parametrize("step", ["pack-nm", "pack-nm{pattern=N:8}"])
def test_nothing_to_pack(step, traced):
    asked, choosing = (
        ("2:4", "choose-masks{pattern=2:4}") if step == "pack-nm" else ("N:8", "choose-masks")
    )
    assert refused(OptionError, traced("mlp"), "", step) == (
        f"no target has the zeros of {asked}; run {choosing} | fold-masks before"
    )


def test_a_tied_embedding_is_refused_when_it_is_named(traced):
    assert refused(OptionError, traced("block"), SPARSE, "pack-nm{targets=head}") == (
        "@head.weight is no weight of linears alone (a tied embedding?), so that it is needed dense; "
        "leave it out of targets"
    )
    program = traced("block")
    parse(f"{SPARSE} | pack-nm").run(program, Context())
    assert program.has("head.weight")


@pytest.mark.parametrize(
    ("before", "step", "sentence"),
    [
        (
            "insert-quantizers{targets=up} | choose-scales{targets=up}",
            "pack-nm{values=int8}",
            "the weight of @down.weight has no quantizer, which values=int8 needs; "
            "widen insert-quantizers, or leave the weight out with ignore",
        ),
        (
            "insert-quantizers{activations=false} | choose-scales",
            "pack-nm{values=int8}",
            "the input of @up.weight has no quantizer, which values=int8 needs; "
            "widen insert-quantizers, or leave the weight out with ignore",
        ),
        (
            "insert-quantizers | choose-scales{targets=up}",
            "pack-nm{values=int8}",
            "@down.weight has no scales yet; widen the targets of choose-scales",
        ),
        (
            SCALES,
            "pack-nm{values=int4}",
            "@up.weight is rounded to int8, not int4; pack it with values=int8, or each weight as it is with "
            "values=rounded",
        ),
        (
            SCALES,
            "pack-nm{values=int8 group=64}",
            "@up.weight has a scale for 32 columns, not 64; leave out group",
        ),
        (
            SCALES,
            "pack-nm{values=int8 targets=up}",
            "@down.weight has a quantizer but would stay dense; leave it out of the targets of "
            "insert-quantizers, or take it into those of pack-nm",
        ),
    ],
)
def test_quantizers_that_do_not_fit(before, step, sentence, traced):
    assert refused(OptionError, traced("mlp"), f"{SPARSE} | {before}", step) == sentence
