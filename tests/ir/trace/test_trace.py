import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from sparsify.errors import TraceError
from sparsify.ir.mode import set_training
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.verify import verify
from sparsify.tensors.precision import largest_difference

DROPOUT = ["gpt2", "opt", "bert"]


def random_batch(batch, length, padding):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 300, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    if padding == "right":
        mask[-1, -(length // 3) :] = 0
    elif padding == "left":
        mask[-1, : length // 3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def close(found, wanted):
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_outputs_equal_the_model_on_every_size_and_padding(family, build, traced):
    model, program = build(family), traced(family)
    for batch, length in [(2, 13), (1, 7), (3, 50), (5, 64)]:
        for padding in ("none", "right", "left"):
            inputs = random_batch(batch, length, padding)
            with torch.no_grad():
                wanted = model(**inputs)
            for name, found in zip(program.source.outputs, program.run(inputs), strict=True):
                read = inputs["attention_mask"].bool()
                expected = wanted[name]
                if expected.dim() == 3:
                    found, expected = found[read], expected[read]
                assert close(found, expected), (batch, length, padding, name)


def test_the_sample_has_padding_so_that_masks_are_felt(family, traced):
    program = traced(family)
    assert int(program.sample["attention_mask"].sum()) < program.sample["input_ids"].numel()
    verify(program)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_two_traces_give_the_same_text(family, build, traced):
    assert to_text(trace(build(family))) == to_text(traced(family))


@pytest.mark.parametrize("family", DROPOUT)
def test_training_mode_is_stochastic_and_equals_the_model_with_the_same_seed(family, build, traced):
    model, program = build(family), traced(family)
    inputs = program.complete(random_batch(2, 9, "none"))
    set_training(program.module, True)
    results = []
    for run in (lambda: program.module(**inputs)[0], lambda: program.module(**inputs)[0]):
        torch.manual_seed(5)
        results.append(run())
    torch.manual_seed(6)
    other = program.module(**inputs)[0]
    model.train()
    torch.manual_seed(5)
    wanted = model(**inputs)[program.source.outputs[0]]
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], other, atol=1e-3)
    assert close(results[0], wanted)


@pytest.mark.parametrize("family", DROPOUT)
def test_training_mode_leaves_no_trace_when_switched_off(family, traced):
    program = traced(family)
    text, wanted = to_text(program), program.run()[0]
    set_training(program.module, True)
    assert to_text(program) == text
    assert torch.equal(program.run()[0], wanted)


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_model_as_it_was(training, tiny_module):
    model = tiny_module("mlp").train(training)
    trace(model, {"x": torch.ones(2, 3, 8)})
    assert model.training is training
    assert "forward" not in model.__dict__


def test_tied_weights_are_one_tensor_with_an_alias(build):
    model = build("gpt2")
    program = trace(model)
    ((alias, path),) = program.aliases.items()
    named = dict(model.named_parameters(remove_duplicate=False))
    assert "lm_head.weight" in (alias, path)
    assert named[alias] is named[path] is program.tensor(path)
    assert not program.has(alias)


def test_untied_models_have_no_alias(traced):
    assert traced("llama").aliases == {}


def test_gradients_reach_the_models_own_parameters(build, text):
    model = build("qwen2")
    program = trace(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    assert all(own[path] is value for path, value in program.module.named_parameters())
    batch = text.batch([0, 1])
    labels = batch["labels"]
    model(**batch).loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = program.module(**program.complete(batch))[0]
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert close(parameter.grad, wanted[name]), name


def test_a_clone_shares_nothing_that_a_pass_edits(traced):
    program = traced("mlp")
    twin = program.clone()
    with torch.no_grad():
        twin.tensor("up.weight").zero_()
    twin.log.append("x")
    twin.plan["x"] = 1
    assert bool(program.tensor("up.weight").any())
    assert program.log == []
    assert program.plan == {}
    assert not torch.equal(program.run()[0], twin.run()[0])


class Branching(nn.Module):
    """Looks at a value, which a graph cannot do."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Integers(nn.Module):
    """Gives nothing that can be learnt."""

    def forward(self, x):
        return x.long()


def test_a_module_that_looks_at_values_is_refused_with_a_sentence():
    with pytest.raises(TraceError, match=r"^Branching could not be traced: .+ \(try attn_imp"):
        trace(Branching(), {"x": torch.ones(2, 3)})


def test_a_module_without_float_outputs_is_refused():
    with pytest.raises(TraceError) as caught:
        trace(Integers(), {"x": torch.ones(2, 3)})
    assert str(caught.value) == "Integers returns no floating-point tensor"


def test_a_plain_module_needs_inputs():
    with pytest.raises(TraceError) as caught:
        trace(nn.Linear(2, 2))
    assert str(caught.value) == (
        "a plain module needs example inputs by argument name to be traced"
    )
    with pytest.raises(TraceError) as caught:
        trace("folder")
    assert str(caught.value) == "trace takes a model, and str is none; load it first"


def test_a_table_that_is_cut_below_its_whole_length_alone():
    """GPT-Neo cuts a table of 16 places, and takes it whole for 16 tokens: another way in its code."""
    config = transformers.GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        window_size=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoForCausalLM(config).eval()
    program = trace(model)
    assert program.dynamic["input_ids"] == {0: "batch", 1: "length"}
    for length in (2, 15, 16):
        ids = torch.randint(0, 40, (3, length), generator=torch.Generator().manual_seed(1))
        wanted = model(ids).logits
        assert largest_difference([program.run({"input_ids": ids})[0]], [wanted]) < 1e-5


def test_pictures_of_a_network_whose_config_names_no_size():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    program = trace(model)
    assert program.sample["pixel_values"].shape == (2, 3, 64, 64)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wanted = model(pixels).logits
    assert largest_difference([program.run({"pixel_values": pixels})[0]], [wanted]) < 1e-5


def test_a_model_that_fails_on_made_up_inputs_is_refused_with_its_own_words():
    """Sizes that do not fit each other: eight values for each of four heads, and two heads of keys."""
    config = transformers.DeepseekV3Config(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        first_k_dense_replace=1,
    )
    model = transformers.DeepseekV3ForCausalLM(config)
    with pytest.raises(TraceError, match="fails on inputs that were made up for it: The size of"):
        trace(model)


class Converting(torch.nn.Module):
    """A part that is converted to the type that it has, in every forward, as routers are."""

    def __init__(self, dtype):
        super().__init__()
        self.map, self.dtype = torch.nn.Linear(4, 4), dtype

    def forward(self, x):
        self.map = self.map.to(self.dtype)
        return self.map(x.to(self.dtype))


def test_conversions_that_change_nothing_are_followed():
    inputs = {"x": torch.randn(2, 3, 4)}
    program = trace(Converting(torch.float32), inputs, {"x": {0: "batch", 1: "length"}})
    assert [path for path, _ in program.tensors()] == ["map.weight", "map.bias"]
    assert torch.nn.Module.to.__module__ == "torch.nn.modules.module"
    with pytest.raises(TraceError):
        trace(Converting(torch.float64), inputs, {"x": {0: "batch", 1: "length"}})
