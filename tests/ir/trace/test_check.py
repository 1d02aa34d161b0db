"""What `trace` promises: evaluation semantics, the caller's model untouched, a program that was compared."""

import importlib
import random
import threading

import pytest
import torch
import transformers
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir.mode import evaluating, set_training
from sparsify.ir.trace.trace import trace


class DropPath(nn.Module):
    def forward(self, x):
        return x * (torch.rand(x.shape[0], 1) < 0.5) if self.training else x


class Mixed(nn.Module):
    """Dropout, batch norm and drop path, some of them resting, with a hook and a forward of its own."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.drop, self.alpha, self.path = nn.Dropout(0.5), nn.AlphaDropout(0.5), DropPath()
        self.calls = []

    def forward(self, x):
        self.calls.append(1)
        return self.alpha(self.path(self.drop(self.norm(self.linear(x)))))


@pytest.fixture
def mixed():
    model = Mixed().train()
    model.norm.running_mean += 1
    model.drop.eval()
    return model


def trace_x(model, **options):
    return trace(model, {"x": torch.ones(2, 8)}, {"x": {0: "batch"}}, **options)


def test_evaluation_semantics_with_dropout_as_a_switch(mixed):
    program, x = trace_x(mixed), torch.randn(5, 8)
    (first,), (second,) = program.run({"x": x}), program.run({"x": x})
    kept = {name: value.clone() for name, value in mixed.state_dict().items()}
    set_training(program.module, True)
    one, other = program.module(x=x)[0], program.module(x=x)[0]
    assert not torch.equal(one, other)
    assert all(torch.equal(value, kept[name]) for name, value in mixed.state_dict().items())
    assert torch.equal(first, second)
    assert torch.equal(first, mixed.eval()(x))


def test_the_model_is_given_back_as_it_was(mixed):
    mixed.linear.weight.requires_grad_(False)
    mixed.norm.register_forward_hook(lambda *_: None)
    mixed.forward = original = mixed.forward
    modes = [part.training for part in mixed.modules()]
    kept = {name: value.clone() for name, value in mixed.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    trace_x(mixed)
    assert [part.training for part in mixed.modules()] == modes
    assert not mixed.drop.training
    assert all(torch.equal(value, kept[name]) for name, value in mixed.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert mixed.forward is original
    assert mixed.calls == []
    assert [p.requires_grad for p in mixed.linear.parameters()] == [False, True]
    assert len(mixed.norm._forward_hooks) == 1


def test_random_numbers_in_evaluation_are_refused():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(TraceError) as error:
        trace_x(Noisy(Noise()))
    assert str(error.value) == (
        "Noisy could not be traced: in evaluation mode too the code in module 'inner' "
        "draws random numbers that are no dropout (aten.rand_like.default)"
    )


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Two(nn.Module):
    def forward(self, input_ids, attention_mask):
        return (input_ids * attention_mask).cumsum(1) * 1.0


def trace_two(monkeypatch, wrong, model=None):
    """Trace while every program is corrupted: its module's result goes through `wrong`."""
    module = importlib.import_module("sparsify.ir.trace.trace")
    propagate = module.propagate

    def corrupted(program):
        propagate(program)
        right = program.module.forward
        program.module.forward = lambda **inputs: (wrong(right(**inputs)[0], **inputs),)

    monkeypatch.setattr(module, "propagate", corrupted)
    inputs = {
        "input_ids": torch.arange(26).reshape(2, 13),
        "attention_mask": torch.ones(2, 13).long(),
    }
    dims = {name: {0: "batch", 1: "length"} for name in inputs}
    return lambda **options: trace(model or Two(), inputs, dims, **options)


def at_other_lengths(y, input_ids, attention_mask):
    return y if y.shape[1] == 13 else y + 1


def under_padding(y, input_ids, attention_mask):
    return y * (attention_mask.all() * 1.0)


def every_time(y, input_ids, attention_mask):
    under_time.append(1)
    return y + (len(under_time) % 2 == 0) * y.max()


under_time: list[int] = []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            at_other_lengths,
            "the program of Two is not Two: at batch 3, length 17, padding on either side",
        ),
        (
            under_padding,
            "the program of Two is not Two: at batch 3, length 17, padding on either side",
        ),
        (every_time, "the program of Two gives other outputs each time: at batch 3, length 17"),
    ],
)
def test_a_wrong_program_is_found(monkeypatch, wrong, said):
    under_time.clear()
    traced = trace_two(monkeypatch, wrong)
    with pytest.raises(TraceError, match=said) as error:
        traced()
    assert "its output 'output' differs by " in str(error.value)
    assert "\n" not in str(error.value)
    traced(check=False)


class OneSize(Two):
    def forward(self, input_ids, attention_mask):
        if not torch.compiler.is_compiling() and input_ids.shape != (2, 13):
            raise ValueError("no other size")
        return super().forward(input_ids, attention_mask)


def test_a_model_that_refuses_other_shapes_is_compared_on_the_sample(monkeypatch):
    traced = trace_two(monkeypatch, lambda y, **inputs: y + 1, OneSize())
    with pytest.raises(TraceError, match="the program of OneSize is not OneSize: at the sample"):
        traced()


def test_a_model_that_cannot_be_exported_says_so_in_one_sentence():
    class Splits(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(TraceError, match=r"^Splits could not be traced: ") as error:
        trace_x(Splits())
    assert "\n" not in str(error.value)


def test_sizes_that_fail_once_refined_are_tried_in_evaluation_mode(monkeypatch):
    exported = importlib.import_module("sparsify.ir.trace.exported")
    once, modes = exported._export_once, []

    def failing(model, sample, shapes, fixed, **how):
        modes.append(model.training)
        if model.training and len(modes) == 1:
            raise torch._dynamo.exc.UserError(
                torch._dynamo.exc.UserErrorType.CONSTRAINT_VIOLATION, "Constraints violated"
            )
        if model.training:
            raise RuntimeError("not even so")
        return once(model, sample, shapes, fixed, **how)

    monkeypatch.setattr(exported, "_export_once", failing)
    monkeypatch.setattr(exported, "_refined", lambda error, shapes: shapes)
    trace_x(nn_linear())
    assert modes == [True, True, False]


def nn_linear():
    class Plain(nn.Module):
        def forward(self, x):
            return 2 * x

    return Plain()


def test_running_leaves_training_mode_on(traced):
    program = traced("bert-base")
    set_training(program.module, True)
    ids = program.sample["input_ids"]
    program.run()
    with evaluating(program.module):
        assert not program.module.training
    inputs = program.complete({"input_ids": ids})
    assert program.module.training
    assert not torch.equal(program.module(**inputs)[0], program.module(**inputs)[0])


def test_clones_share_nothing_that_is_edited(traced):
    program = traced("mlp")
    twin = program.clone()
    twin.sample["x"], twin.dynamic["x"][1] = torch.ones(1), "other"
    twin.plan["a"], twin.aliases["b"] = 1, "c"
    twin.log.append("d")
    assert program.sample["x"].shape == (2, 3, 8)
    assert program.dynamic["x"][1] == "length"
    assert not (program.plan)
    assert not (program.aliases)
    assert not (program.log)


def test_copies_have_their_own_weights_tied_as_before(tiny_module):
    model, ids = tiny_module("block"), torch.arange(10).reshape(2, 5)
    program = trace(model, {"input_ids": ids}, {"input_ids": {0: "batch"}}, copy=True)
    own = program.tensor("head.weight")
    assert torch.equal(own, model.embed.weight)
    assert own.data_ptr() != model.embed.weight.data_ptr()
    assert program.aliases == {"embed.weight": "head.weight"}


def test_threads_may_trace_at_once(tiny_module):
    model, x = tiny_module("mlp"), torch.randn(2, 3, 8)
    found = []
    work = [
        threading.Thread(target=lambda: found.append(trace(model, {"x": x}).run()[0]))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 3
    # Not bit for bit: another thread may take another path through the matrix library.
    assert all(torch.allclose(y, model(x), atol=1e-5) for y in found)


def test_drop_path_and_relative_positions_of_a_vision_model():
    config = transformers.BeitConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, use_relative_position_bias=True, drop_path_rate=0.5,
    )  # fmt: skip
    model = transformers.BeitForImageClassification(config)
    program = trace(model)
    wanted = model.eval()(**program.sample).logits
    assert torch.allclose(program.run()[0], wanted, atol=1e-6)
