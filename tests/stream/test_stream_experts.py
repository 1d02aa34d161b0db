"""Models with experts, streamed: folders that hold their matrices one by one, or together."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from zoo_models import small_model

from sparsify.data.sequences import TensorData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError
from sparsify.ir.trace.trace import trace
from sparsify.ir.trace.weightless import trace_weightless
from sparsify.select.one_shot import OneShot
from sparsify.select.weights import Target
from sparsify.stream.checkpoint import Checkpoint
from sparsify.stream.job import Job
from sparsify.stream.plan import plan
from sparsify.stream.prune import prune

TASK = "AutoModelForCausalLM"
# Its folder holds matrices one by one under other names, together in two parts, and as the model has them.
FAMILIES = ("mixtral", "granitemoe", "qwen3_moe", "gpt_oss", "llama4_text")


def data():
    """Sequences of 12 tokens, every other padded on the right."""
    ids = torch.randint(3, 96, (8, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[::2, 7:] = 0
    return TensorData({"input_ids": ids, "attention_mask": mask})


def written(family, folder):
    model = small_model(family, TASK)
    model.save_pretrained(folder)
    return model


def job(source, out, score="wanda", **others):
    how = OneShot(score, Target.of(None, "2:4"))
    return Job(str(source), how, out, samples=8, batch=4, dtype="float32", **others)


def stacks_of(model):
    return {name: value for name, value in model.named_parameters() if value.dim() == 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_folder_holds_what_the_old_one_held_and_loads(family, tmp_path):
    before = written(family, tmp_path / "m")
    out = prune(job(tmp_path / "m", tmp_path / "o"), data())
    old, new = load_file(tmp_path / "m" / "model.safetensors"), {}
    for file in out.glob("*.safetensors"):
        new |= load_file(file)
    assert {key: value.shape for key, value in new.items()} == {
        key: value.shape for key, value in old.items()
    }
    after = AutoModelForCausalLM.from_pretrained(out)
    dense = stacks_of(before)
    found = {
        name: value for name, value in stacks_of(after).items() if value.shape[1:].numel() > 64
    }
    assert found
    for name, value in found.items():
        if value.shape[-1] < 8:
            continue
        assert float((value == 0).float().mean()) == 0.5, name
        kept = value != 0
        assert torch.equal(value[kept], dense[name][kept])
    for name, value in before.named_parameters():
        if value.dim() == 1:
            assert torch.equal(dict(after.named_parameters())[name], value)


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_experts_see_what_the_pruned_linears_before_them_give(score, tmp_path):
    """Pruned one after the other by pipelines, each with fresh statistics, comes to the same weights."""
    written("mixtral", tmp_path / "m")
    out = prune(job(tmp_path / "m", tmp_path / "o", score), data())
    streamed = stacks_of(AutoModelForCausalLM.from_pretrained(out))
    program = trace(small_model("mixtral", TASK), copy=True)
    gram = "true" if score == "sparsegpt" else "false"
    layers = [f"model.layers.{n}" for n in (0, 1)]
    parts = ("self_attn.[qkv]_proj", "self_attn.o_proj", "mlp.gate")
    parts += ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    for targets in [f"{layer}.{part}*" for layer in layers for part in parts]:
        text = (
            f"insert-probes{{targets={targets} gram={gram}}} | calibrate{{samples=8 batch=4}} | "
            f"insert-masks{{targets={targets}}} | "
            f"choose-masks{{targets={targets} score={score} pattern=2:4}} | remove-probes | fold-masks"
        )
        parse(text).run(program, Context(data=data()))
    for name, value in streamed.items():
        mine = program.tensor(name)
        assert ((mine == 0) == (value == 0)).float().mean() > 0.995, name
        torch.testing.assert_close(mine.norm(), value.norm(), rtol=1e-3, atol=0)


def test_a_folder_of_experts_is_read_as_the_model_has_them(tmp_path):
    model = written("mixtral", tmp_path / "m")
    program = trace_weightless(str(tmp_path / "m"), "float32")
    checkpoint = Checkpoint(tmp_path / "m")
    names = checkpoint.names_of(program)
    path = "model.layers.1.mlp.experts.gate_up_proj"
    loaded = checkpoint.load(names[path], torch.float32)
    assert torch.equal(loaded[names[path]], model.get_parameter(path).detach())
    back = checkpoint.stored(loaded)
    held = load_file(tmp_path / "m" / "model.safetensors")
    assert len(back) == 2 * 4
    assert all(torch.equal(held[key], value) for key, value in back.items())


def test_a_folder_that_lacks_an_expert_is_refused(tmp_path):
    written("mixtral", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in tensors if "experts.2." in key)
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"1 missing \(.*experts\.2"):
        prune(job(tmp_path / "m", tmp_path / "o"), data())


def test_the_plan_counts_each_matrix_and_the_experts_that_a_token_meets(tmp_path):
    written("mixtral", tmp_path / "m")
    found = plan(job(tmp_path / "m", tmp_path / "o"), 12)
    assert found.linears == 2 * (5 + 2 * 4)
    dense = sum(v.numel() for v in small_model("mixtral", TASK).parameters() if v.dim() > 1)
    assert found.weights < dense
    assert found.tokens == 8 * 12


def test_a_model_whose_first_layer_has_no_attention_is_streamed(tmp_path):
    written("jamba", tmp_path / "m")
    out = prune(job(tmp_path / "m", tmp_path / "o"), data())
    found = stacks_of(AutoModelForCausalLM.from_pretrained(out))
    shares = [float((v == 0).float().mean()) for name, v in found.items() if "experts" in name]
    assert shares
    assert set(shares) == {0.5}
