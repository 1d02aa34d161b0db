"""What a step takes, counted without values: held against a step that is done."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.mode import set_training
from sparsify.train.plan import Ranks, Step, plan
from sparsify.train.trainable import select_trainable


def planned(program, step=None, ranks=None, update="all"):
    with select_trainable(program, update):
        return plan(program, step or Step(4, 12), ranks or Ranks())


def saved(program, batch, length):
    """Bytes that a real forward pass keeps for the backward pass, parameters left out."""
    known = {value.untyped_storage().data_ptr() for value in program.module.parameters()}
    found = {}

    def pack(value):
        place = value.untyped_storage()
        if place.data_ptr() not in known:
            found[place.data_ptr()] = (
                place.nbytes(),
                value,
            )  # held, so that no place is used twice
        return value

    ids = torch.randint(3, 50, (batch, length))
    set_training(program.module, True)
    with select_trainable(program, "all"), saved_tensors_hooks(pack, lambda value: value):
        outputs = program.module(**program.complete({"input_ids": ids}))
        assert outputs[0].requires_grad
    set_training(program.module, False)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_activations_are_those_that_a_real_step_keeps(family, traced):
    program = traced(family)
    found = planned(program)
    assert found.activations == pytest.approx(saved(program, 4, 12), rel=0.02)
    assert planned(program, Step(8, 12)).activations == pytest.approx(
        2 * found.activations, rel=0.02
    )
    less = planned(program, Step(4, 12, recompute="layers"))
    assert less.activations < 0.8 * found.activations
    assert less.multiply_adds * 3 == found.multiply_adds * 4


def test_every_parameter_counts_once_and_moments_by_what_learns(traced):
    program = traced("llama")
    whole = sum(value.numel() for value in program.module.parameters())
    found = planned(program)
    assert (found.parameters, found.learned) == (whole, whole)
    assert (found.weights, found.gradients, found.moments) == (4 * whole, 4 * whole, 8 * whole)
    assert (found.sent, found.gathered) == (0, 0)
    assert found.peak > found.weights + found.moments + found.gradients
    assert planned(program, Step(4, 12, moments=1)).moments == 4 * whole
    twin = planned(program, Step(4, 12, twin=1000))
    assert twin.peak == found.peak + 1000
    assert twin.multiply_adds * 3 == found.multiply_adds * 4


def test_masks_and_branches_are_in_it(traced):
    program = parse("insert-masks | insert-lora{rank=2}").run(traced("llama"), Context())
    found = planned(program, update="lora")
    masks = sum(value.numel() for path, value in program.tensors() if path.endswith("_mask"))
    assert found.others >= masks
    branches = sum(v.numel() for path, v in program.tensors() if "_lora_" in path)
    assert found.learned == branches
    assert found.moments == 8 * branches


def test_what_is_cut_falls_with_the_ranks_and_what_is_whole_does_not(traced):
    program = traced("llama")
    one, ddp, cut = (planned(program, ranks=r) for r in (Ranks(), Ranks(2), Ranks(2, sharded=True)))
    more = planned(program, ranks=Ranks(4, sharded=True))
    assert ddp.weights == one.weights
    assert ddp.activations == pytest.approx(one.activations / 2, rel=0.02)
    assert ddp.sent == one.gradients  # 2 (n - 1) / n
    assert ddp.others - one.others == one.gradients  # its buckets
    assert [2 * cut.weights, 4 * more.weights] == [one.weights] * 2
    assert [2 * cut.moments, 4 * more.moments] == [one.moments] * 2
    assert more.gathered == cut.gathered > 0
    assert cut.sent == one.weights + one.gradients // 2
    assert ddp.peak > cut.peak > more.peak


def test_masks_and_the_twin_are_cut_too(traced):
    dense = traced("llama")
    program = parse("insert-masks").run(dense.clone(), Context())
    masks = sum(value.numel() for path, value in program.tensors() if path.endswith("_mask"))

    def of(this, count, twin=0):
        found = planned(this, Step(4, 12, twin=twin), Ranks(count, sharded=count > 1))
        return found.others, found.gathered, found.sent

    without, plain, sent = of(dense, 2)
    two, more, also = of(program, 2)
    four, *_ = of(program, 4)
    assert [two - without, four - without] == [masks // 2, masks // 4]
    assert of(program, 1)[0] - of(dense, 1)[0] == masks
    assert 0 < more - plain < masks  # those of two layers, and a copy of one twice
    assert also - sent == masks
    parameters = 4 * sum(value.numel() for value in dense.module.parameters())
    for size in (parameters, parameters // 2):
        others, gathered, more_sent = of(dense, 2, twin=size)
        assert others - without == size // 2 + plain * size // parameters
        assert gathered == plain
        assert more_sent - sent == size // 2
