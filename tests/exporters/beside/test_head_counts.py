"""Numbers of heads that no config can say are refused before anything runs, with those that it can."""

import pytest
import torch
import transformers

from exporters.huggingface import Huggingface
from sparsify.engine.export import check_exports, write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import ExportError
from sparsify.ir.trace.trace import trace
from sparsify.select.target_shape import Heads


@pytest.fixture(scope="module")
def fifteen():
    """A decoder of 15 query heads in 5 KV groups, each of 4 features."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=60,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=15,
        num_key_value_heads=5,
        vocab_size=50,
        max_position_embeddings=64,
    )
    program = trace(transformers.LlamaForCausalLM(config).eval())
    return program.clone


def pipeline(options, removal="prune-heads"):
    return parse(
        f"insert-masks{{of=heads}} | choose-masks{{of=heads score=magnitude {options}}} | {removal}"
    )


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("sparsity=0.5", (9, 3)),
        ("sparsity=0.6", (6, 2)),
        ("sparsity=0.6 multiple=4", (12, 4)),
        ("sparsity=0.5 rule=inside", (10, 5)),
        ("to=shape{heads=12}", (12, 4)),
        ("to=shape{heads=5} rule=inside", (5, 5)),
    ],
)
def test_what_is_left_is_known_before_and_true_after(options, left, fifteen):
    program = fifteen()
    assert pipeline(options).heads_left(program) == Heads(15, 5, *left)
    pipeline(options).run(program)
    shapes = [tuple(program.tensor(f"model.layers.{i}.self_attn.{n}_proj.weight").shape)
              for i in range(2) for n in "qk"]  # fmt: skip
    assert shapes == [(4 * left[0], 60), (4 * left[1], 60)] * 2


def test_it_is_not_known_where_scores_or_targets_decide(fifteen):
    for text in (
        pipeline("sparsity=0.5 scope=global"),
        pipeline("sparsity=0.5 targets=*layers.0*"),
        pipeline("sparsity=0.5", "fold-masks{of=heads}"),
    ):
        assert text.heads_left(fifteen()) is None


def test_the_reason_and_what_fits_are_told_first(fifteen):
    program = fifteen()
    left = pipeline("sparsity=0.5").heads_left(program)
    with pytest.raises(ExportError) as caught:
        check_exports(program, ["onnx", "huggingface"], frozenset(), left)
    assert str(caught.value) == (
        "huggingface cannot say 9/3 of 15/5 query heads and KV groups in a config of LlamaForCausalLM: "
        "The hidden size (60) is not a multiple of the number of attention heads (9); "
        "it takes 3/1, 6/2, 12/4, and onnx and safetensors any"
    )
    check_exports(program, ["onnx"], frozenset(), left)
    check_exports(program, ["huggingface"], frozenset(), Heads(15, 5, 6, 2))


def test_a_class_without_a_head_size_is_refused_first(traced):
    with pytest.raises(ExportError) as caught:
        check_exports(traced("gpt2"), ["huggingface"], frozenset(), Heads(4, 4, 2, 2))
    assert str(caught.value) == (
        "huggingface cannot say 2/2 of 4/4 query heads and KV groups in a config of GPT2LMHeadModel: "
        "it has no head size of its own, so that fewer heads would be larger ones; "
        "it takes no fewer, and onnx and safetensors any"
    )


def test_the_late_refusal_tells_the_reason_too(fifteen, tmp_path):
    program = pipeline("sparsity=0.5").run(fifteen())
    with pytest.raises(ExportError) as caught:
        write_checked(Huggingface(), program, tmp_path)
    assert (
        "it refuses num_attention_heads=9: "
        "The hidden size (60) is not a multiple of the number of attention heads (9)"
    ) in str(caught.value)
