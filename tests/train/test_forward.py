"""The dense twin in training: its copy in bfloat16, and where its logits come from."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.train.forward import Teacher, Trained

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))


def types(program):
    return {value.dtype for value in program.module.parameters()}


def test_its_copy_is_bfloat16_and_the_program_stays(traced):
    program = traced("llama")
    before = {path: value.clone() for path, value in program.tensors()}
    teacher = Teacher(program, "bf16")
    assert types(teacher.program) == {torch.bfloat16}
    assert types(program) == {torch.float32}
    assert all(torch.equal(value, before[path]) for path, value in program.tensors())
    wanted = traced("llama").run({"input_ids": IDS})[0]
    found = teacher.outputs({"input_ids": IDS}, torch.device("cpu"))[0]
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2
    assert Teacher(program).program is program
    assert Teacher(teacher.program, "bf16").program is teacher.program


def test_packed_weights_keep_their_type(traced):
    text = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
    program = parse(text).run(traced("llama"), Context())
    assert Teacher(program, "bf16").program is program


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_its_side_makes_its_logits(precision, traced):
    teacher = Teacher(traced("llama"), precision)
    side = teacher.side({"input_ids": IDS}, torch.device("cpu"))
    logits = side.head.after(side.product(slice(0, IDS.numel())))
    assert torch.equal(logits.view(2, 9, -1), teacher.program.run({"input_ids": IDS})[0])


def test_a_pipeline_makes_it_in_bfloat16_where_that_is_enough(traced, text, monkeypatch):
    seen = []
    init = Teacher.__init__
    monkeypatch.setattr(
        Teacher,
        "__init__",
        lambda self, program, precision: (
            seen.append((types(program), precision)),
            init(self, program, precision),
        )[1],
    )
    train = "train{steps=1 batch=2 distill=kl precision=bf16}"
    parse(train).run(traced("llama"), Context(data=text))
    parse(f"{train} | train{{steps=1 batch=2 distill=kl}}").run(traced("llama"), Context(data=text))
    assert seen == [
        ({torch.bfloat16}, "bf16"),
        ({torch.float32}, "bf16"),
        ({torch.float32}, "float32"),
    ]


def test_headless_it_gives_what_the_head_reads(traced):
    model = Trained(traced("llama"), "layers").train()
    (logits,) = model(input_ids=IDS)
    model.headless = True
    x, weight = model(input_ids=IDS)
    assert torch.allclose(x @ weight.t(), logits, atol=1e-5)
