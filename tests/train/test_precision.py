"""One precision a run, whatever accelerate was told before in the process."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.train.precision import accelerating


@pytest.fixture(autouse=True)
def fresh_state():
    """None is taken over or left behind."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_a_float32_run_after_a_bf16_one_is_a_float32_run(traced, text):
    def train(precision):
        program = traced("llama")
        parse(f"train{{steps=2 batch=4 precision={precision}}}").run(program, Context(data=text))
        return torch.cat([p.detach().flatten() for p in program.module.parameters()])

    before, narrow, after = (train(p) for p in ("float32", "bf16", "float32"))
    assert torch.equal(before, after)
    assert not torch.equal(before, narrow)


def test_the_precision_of_others_is_neither_taken_over_nor_changed():
    others = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    with accelerating("cpu", "float32") as ours:
        assert ours.mixed_precision == "no"
        assert ours.gradient_accumulation_steps == 1
    assert others.mixed_precision == AcceleratorState().mixed_precision == "bf16"
    assert others.gradient_accumulation_steps == GradientState().num_steps == 3


def test_it_is_put_back_after_an_error():
    Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(ZeroDivisionError), accelerating("cpu", "float32"):
        1 / 0  # noqa: B018
    assert AcceleratorState().mixed_precision == "bf16"
