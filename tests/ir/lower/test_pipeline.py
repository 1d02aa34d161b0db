"""Lowering changes how a program is written, not what it computes nor the one it was given."""

from collections import Counter
from functools import cache

import pytest
import torch
import transformers

from sparsify.ir.lower.pipeline import lowered
from sparsify.ir.program import Program
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.tensors.precision import relative_difference


@cache
def llama(heads=8, groups=4) -> Program:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=4,
        vocab_size=50,
        attention_dropout=0.1,
    )
    return trace(transformers.LlamaForCausalLM(config))


@cache
def gpt2() -> Program:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=50,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=1,
    )
    return trace(transformers.GPT2LMHeadModel(config))


def ops(module: torch.fx.GraphModule) -> Counter[str]:
    return Counter(
        str(node.target).removeprefix("aten.").removesuffix(".default")
        for node in module.graph.nodes
        if node.op == "call_function"
    )


@pytest.mark.parametrize("make", [llama, gpt2])
def test_outputs_stay(make):
    program = make()
    inputs = program.complete({"input_ids": torch.arange(3, 33).view(2, 15)})
    with torch.no_grad():
        found = lowered(program)(**inputs)
    for a, b in zip(program.run(inputs), found, strict=True):
        assert relative_difference(a, b) < 1e-5


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_program_is_untouched(make):
    program = make()
    text = to_text(program)
    before = {path: (id(t), t.shape, t.detach().clone()) for path, t in program.tensors()}
    module = lowered(program)
    assert to_text(program) == text
    for path, tensor in program.tensors():
        same, shape, value = before[path]
        assert (id(tensor), tensor.shape) == (same, shape)
        assert torch.equal(tensor, value)
    storages = {t.untyped_storage().data_ptr() for _, t in program.tensors()}
    assert {t.untyped_storage().data_ptr() for t in module.state_dict().values()} <= storages


def test_grouped_attention():
    module = lowered(llama())
    sdpa = torch.ops.aten.scaled_dot_product_attention.default
    attention = [node for node in module.graph.nodes if node.target is sdpa]
    assert [node.kwargs["enable_gqa"] for node in attention] == [True, True]
    assert [tuple(node.args[1].meta["val"].shape)[1] for node in attention] == [4, 4]
    assert ops(module)["expand"] == 1  # the attention mask


def test_one_query_head_per_group_is_not_grouped():
    module = lowered(llama(heads=4, groups=4))
    sdpa = torch.ops.aten.scaled_dot_product_attention.default
    attention = [node for node in module.graph.nodes if node.target is sdpa]
    assert not any(node.kwargs.get("enable_gqa", False) for node in attention)


def test_weights_are_stored_in_out():
    program, module = llama(), lowered(llama())
    assert ops(module)["linear"] == 0
    assert ops(module)["matmul"] == 15
    for path in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        assert module.get_parameter(path).shape == program.tensor(path).t().shape


def test_tied_weight_keeps_its_layout():
    module = lowered(gpt2())
    found = ops(module)
    assert (found["linear"], found["addmm"], found["matmul"]) == (1, 0, 8)
    assert found["dropout"] == 0
    assert any(tuple(p.shape) == (50, 32) for p in module.parameters())


def test_a_shared_copy_has_the_same_tensors():
    program = llama()
    copy = program.shared()
    assert to_text(copy) == to_text(program)
    assert all(copy.tensor(path) is tensor for path, tensor in program.tensors())
    assert copy.graph is not program.graph


class Odd(torch.nn.Module):
    """What some models write: a mask that all queries share, a count of one bin, a number less a tensor."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(8, 8)

    def forward(self, x, mask):
        heads = self.map(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
        keep = 1.0 - mask[:, None, None, :].float()
        found = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, keep * -1e4)
        joined = found.transpose(1, 2).reshape(*x.shape[:2], 8)
        return joined, torch.histc(mask.flatten().float(), 1)


def odd() -> Program:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 5, 8), "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    dims = {name: {0: "batch", 1: "length"} for name in inputs}
    return trace(Odd().eval(), inputs, dims)


def test_runtimes_are_given_what_they_take():
    program = odd()
    module = lowered(program)
    found = ops(module)
    # Another count of sequences and places than the sample's.
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    inputs = {"x": torch.randn(3, 3, 8), "mask": mask}
    wanted, made = program.run(inputs), module(**inputs)
    assert torch.allclose(made[0], wanted[0], atol=1e-6)
    assert made[1].tolist() == wanted[1].tolist() == [9]
    assert found["histc"] == found["rsub.Scalar"] == 0
    (attention,) = (n for n in module.graph.nodes if "scaled_dot" in str(n.target))
    assert [str(size) for size in attention.args[3].meta["val"].shape[-2:]] == [
        str(attention.args[0].meta["val"].shape[2])
    ] * 2
    (joined,) = (n for n in module.graph.nodes if n.target is torch.ops.aten.reshape.default)
    assert joined.args[0].target is torch.ops.aten.clone.default
