"""A wrapped program on other devices and in other floating-point types."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import SparsifyError
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify
from sparsify.train.program_model import ProgramModel

IDS = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(11) < torch.tensor([[11], [7], [9]])).long()


def test_it_runs_where_its_weights_are(traced):
    model = ProgramModel(traced("llama")).to("meta")
    assert (model.device.type, model(IDS, MASK).logits.device.type) == ("meta", "meta")
    assert all(value.is_meta for value in model.program.sample.values())
    assert "cpu" not in to_text(model.program)
    verify(model.program)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((each, torch.bfloat16) for each in ("llama", "gemma", "gpt2", "bert", "routed")),
        *(("llama", torch.float16), ("llama", torch.float64)),
    ],
)
@torch.no_grad()
def test_in_another_type_it_is_the_model_in_that_type(family, dtype, traced, build):
    model, wrapped = build(family), ProgramModel(traced(family)).eval()
    before, text = model(IDS, attention_mask=MASK)[0], to_text(wrapped.program)
    wanted = model.to(dtype)(IDS, attention_mask=MASK)[0].double()
    found = wrapped.to(dtype)(IDS, MASK)[0]
    verify(wrapped.program)
    assert wrapped.dtype == found.dtype == dtype
    moved = (wanted - before).abs().max()
    # The same roundings in the same places, but for the sum over experts; in float64 the tables are float32.
    allowed = {"routed": 1.0}.get(family, 0.0) if dtype != torch.float64 else 1.0
    assert (found - wanted).abs().max() <= allowed * moved
    back = wrapped.float()
    verify(back.program)
    if dtype != torch.float64:
        assert to_text(back.program) == text
    assert torch.allclose(back(IDS, MASK)[0], before, atol=0.2)


def test_floating_point_inputs_take_the_type_of_the_program(traced):
    model = ProgramModel(traced("mlp")).bfloat16()
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(x)["output"], model(x.bfloat16())["output"])


def test_a_sparse_program_trains_in_bfloat16(traced):
    text = "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=2}"
    model = ProgramModel(parse(text).run(traced("llama"), Context())).train()
    wanted = model(IDS, MASK, labels=IDS).loss
    found = model.bfloat16()(IDS, MASK, labels=IDS).loss
    found.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    verify(parse("fold-lora | fold-masks").run(model.program, Context()))


def test_packed_weights_keep_their_type(traced):
    text = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
    model = ProgramModel(parse(text).run(traced("llama"), Context()))
    before = to_text(model.program)
    with pytest.raises(SparsifyError) as caught:
        model.half()
    assert str(caught.value) == (
        "packed weights keep the type they are packed in; only a device fits"
    )
    assert to_text(model.program) == before
    assert model(IDS).logits.dtype == torch.float32
