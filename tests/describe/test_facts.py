"""The figures of a program: every matrix with its zeros, what was removed, how it is stored."""

import json

import pytest
import torch

from sparsify.describe.count import count
from sparsify.describe.facts import FILE, Share, kind, read_facts, write_facts
from sparsify.describe.of_program import facts_of, pattern_of, task_of
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError
from sparsify.ir.facts.weights import linear_weights
from sparsify.ir.storage.folder import load, save

PRUNED = (
    "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.34 multiple=4} | "
    "prune-channels | insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
)


def of(facts, end):
    (found,) = [weight for weight in facts.weights if weight.path.endswith(end)]
    return found


def test_a_dense_model(traced):
    program = traced("llama")
    facts = facts_of(program)
    entries = sum(value.numel() for value in program.module.parameters())
    assert (facts.model, facts.task) == ("LlamaForCausalLM", "text-generation")
    assert (facts.parameters, facts.were, facts.zeros) == (entries, entries, 0)
    assert facts.length == 128
    assert facts.multiply_adds > 128 * Share.of(facts.weights).left
    assert len(facts.weights) == 2 * 7 + 1
    query = of(facts, "0.self_attn.k_proj.weight")
    assert (query.shape, query.was, query.values) == ((32, 64), (32, 64), "float32")
    assert (query.bytes, query.pattern, query.packed) == (4 * 32 * 64, "", False)


def test_pruned_and_packed(traced, tmp_path):
    program = parse(PRUNED).run(traced("block"), Context())
    facts = facts_of(program)
    down = of(facts, "down.weight")
    assert (down.shape, down.was) == ((8, 8), (8, 12))
    assert (down.zeros, down.pattern, down.values, down.packed) == (32, "2:4", "float32", True)
    assert down.bytes == program.tensor("down.weight_packed").nbytes
    share = Share.of([down])
    assert (share.zero, share.removed) == (0.5, pytest.approx(1 / 3))
    assert share.gone == pytest.approx(2 / 3)
    assert facts.were - facts.parameters == 4 * (8 + 8 + 1)
    assert facts.zeros == Share.of(facts.weights).zeros
    save(program, tmp_path / "p")
    assert facts_of(load(tmp_path / "p")) == facts


def test_weights_in_blocks(traced):
    program = traced("llama")
    entries = facts_of(program).parameters
    rounded = "insert-quantizers{values=int4 group=32 ends=true} | choose-scales | pack-dense"
    parse(rounded).run(program, Context())
    facts = facts_of(program)
    assert facts.parameters == facts.were == entries
    assert len(facts.weights) == 2 * 7 + 1
    query = of(facts, "0.self_attn.k_proj.weight")
    assert (query.shape, query.was, query.values) == ((32, 64), (32, 64), "int4")
    assert (query.bytes, query.packed) == (32 * 64 // 2 + 2 * 32 * 64 // 32, True)
    # A small weight is rounded to zero here and there.
    value = dict(linear_weights(program))["model.layers.0.self_attn.k_proj.weight_blocks"]
    assert query.zeros == int((value == 0).sum()) > 0
    counts = count(program)
    assert counts.parameters == entries
    assert counts.linear_parameters == Share.of(facts.weights).left
    assert counts.linear_zeros == Share.of(facts.weights).zeros


def test_removed_layers_are_told(traced):
    text = "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.5} | prune-layers"
    facts = facts_of(parse(text).run(traced("qwen2"), Context()))
    gone = [weight for weight in facts.weights if not weight.shape]
    assert len(gone) == 7
    assert {kind(weight.path) for weight in gone} < {
        kind(weight.path) for weight in facts.weights if weight.shape
    }
    assert Share.of(gone).removed == Share.of(gone).gone == 1


def test_a_weight_that_is_stored_turned_and_those_of_experts(traced):
    turned = of(facts_of(traced("gpt2")), "0.mlp.c_fc.weight")
    assert turned.shape == turned.was == (96, 64)
    experts = [weight for weight in facts_of(traced("routed")).weights if len(weight.shape) == 3]
    assert {weight.shape for weight in experts} == {(6, 48, 16), (6, 16, 24)}
    assert all(weight.shape == weight.was for weight in experts)


def test_a_model_with_fewer_positions_and_one_without_a_task(traced):
    assert facts_of(traced("mlp")).task == ""
    assert facts_of(traced("bert-base")).task == "feature-extraction"
    assert task_of("BertForSequenceClassification") == "text-classification"
    assert task_of("GPT2LMHeadModel") == "text-generation"


def test_the_tightest_pattern_is_found(traced):
    weight = traced("mlp").tensor("up.weight").detach().clone()
    assert pattern_of(weight) == ""
    weight[:, 0] = weight[:, 5] = 0
    weight[0, 3] = 0
    weight[0, 0] = 1
    assert pattern_of(weight) == "3:4"
    weight[:, 2] = weight[:, 7] = 0
    assert pattern_of(weight) == "2:4"
    weight[:] = 1
    weight[:, 4:] = 0
    weight[0, 0] = 0
    assert pattern_of(weight) == "4:8"
    assert pattern_of(weight[:, :7]) == ""
    assert pattern_of(0 * weight) == ""


def test_masked_channels_are_no_pattern(traced):
    weight = torch.ones_like(traced("mlp").tensor("up.weight"))
    weight[:, ::8] = 0
    assert pattern_of(weight) == ""
    weight[0, 1] = 0  # one weight more, and the zeros are no channels alone
    assert pattern_of(weight) == "7:8"


def test_figures_come_back_or_the_damage_is_told(traced, tmp_path):
    facts = facts_of(traced("mlp"))
    assert read_facts(tmp_path) is None
    write_facts(facts, tmp_path)
    assert read_facts(tmp_path) == facts
    about = json.loads((tmp_path / FILE).read_text())
    for damage in ({"version": 2}, {"weights": [{"path": "x"}]}, {"parameters_": 3}):
        (tmp_path / FILE).write_text(json.dumps({**about, **damage}))
        with pytest.raises(DataError, match="is damaged or not ours"):
            read_facts(tmp_path)
