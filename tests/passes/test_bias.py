"""Bias compensation: its value, pruning with it, and every export of it, with and without a bias before."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import ExportError, OptionError, PipelineError
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears, out_in

START = "insert-probes | calibrate{samples=6} | insert-masks{of=heads,channels} | "
EVEN = "choose-masks{of=heads,channels score=fluctuation sparsity=0.5} | "
UNEVEN = "choose-masks{of=heads,channels score=fluctuation scope=global sparsity=0.4} | "
BIAS = "insert-bias | choose-bias | remove-probes"
PRUNE = " | prune-heads | prune-channels"
# Where layer 0 takes its heads in, and the bias there.
CONSUMERS = {
    "llama": "model.layers.0.self_attn.o_proj",
    "opt": "model.decoder.layers.0.self_attn.out_proj",
    "gpt2": "transformer.h.0.attn.c_proj",
}


def run(program, pipeline, data):
    return parse(pipeline).run(program, Context(data=data))


def close(one, two):
    for a, b in zip(one.run(), two.run(), strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()), rtol=0)


@pytest.mark.parametrize("family", CONSUMERS)
def test_the_bias_keeps_the_mean_output_of_the_linear(family, traced, build, text):
    """Nothing before the attention of layer 0 is pruned, so its mean output must be the dense one."""
    path, model = CONSUMERS[family], build(family)
    outputs = []
    model.get_submodule(path).register_forward_hook(
        lambda m, args, out: outputs.append((args[0], out))
    )
    with torch.no_grad():
        for sample in range(len(text)):
            model(**{k: v for k, v in text.batch([sample]).items() if k != "labels"})
    x, dense = (torch.cat([pair[i] for pair in outputs]).flatten(0, 1) for i in (0, 1))
    steps = START.replace("samples=6", f"samples={len(text)}")
    program = run(
        traced(family), f"{steps}{EVEN}{BIAS} | fold-bias | fold-masks{{of=heads,channels}}", text
    )
    view = next(v for v in linears(program) if v.weight == f"{path}.weight")
    weight = out_in(view, program.tensor(view.weight)).detach()
    assert bool((weight == 0).any())
    pruned = x @ weight.T + program.tensor(f"{path}.bias").detach()
    assert torch.allclose(pruned.mean(0), dense.mean(0), atol=1e-5)
    assert not torch.allclose((x @ weight.T).mean(0), dense.mean(0), atol=1e-3)


@pytest.mark.parametrize("choice", [EVEN, UNEVEN])
@pytest.mark.parametrize("family", CONSUMERS)
def test_pruned_equals_masked_with_the_bias_before_or_behind(
    family, choice, traced, text, tmp_path
):
    masked = run(traced(family), START + choice + BIAS, text)
    assert any(not bool(masked.tensor(m.path).all()) for m in group_masks(masked))
    first = run(masked.clone(), f"fold-bias{PRUNE}", text)
    last = run(masked.clone(), f"{PRUNE.removeprefix(' | ')} | fold-bias", text)
    close(masked, first)
    assert to_text(first) == to_text(last)
    again = load(save(first, tmp_path / "p"))
    assert to_text(again) == to_text(first)
    assert all(torch.equal(a, b) for a, b in zip(first.run(), again.run(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exports_hold_the_bias(family, traced, text, tmp_path):
    program = run(traced(family), f"{START}{EVEN}{BIAS} | fold-bias{PRUNE}", text)
    formats = ["onnx", "safetensors", *(["huggingface"] if family == "llama" else [])]
    export(program, tmp_path / "out", formats)  # reads everything back and compares
    if family == "llama":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "huggingface")
        assert model.config.attention_bias is True
        assert model.config.mlp_bias is True
        bias = model.get_submodule(CONSUMERS["llama"]).bias
        assert torch.equal(bias, program.tensor(f"{CONSUMERS['llama']}.bias"))


def test_a_config_that_has_no_place_for_the_bias_is_said(traced, text, tmp_path):
    program = run(traced("qwen2"), f"{START}{EVEN}{BIAS} | fold-bias{PRUNE}", text)
    with pytest.raises(
        ExportError, match=r"no config of Qwen2ForCausalLM has the program's shapes: .*; export to"
    ):
        export(program, tmp_path / "out", ["huggingface"])


def test_an_unfolded_bias_is_not_exported(traced, text, tmp_path):
    program = run(traced("llama"), START + EVEN + BIAS + PRUNE, text)
    with pytest.raises(ExportError, match="fold-bias"):
        export(program, tmp_path / "out", ["onnx"])


def test_choosing_again_starts_afresh(traced, text):
    program = run(traced("gpt2"), START + EVEN + "insert-bias | choose-bias", text)
    path = f"{CONSUMERS['gpt2']}.weight_added_bias"
    first = program.tensor(path).detach().clone()
    run(program, "choose-bias", text)
    assert torch.equal(program.tensor(path), first)
    assert bool(first.any())


def test_masks_of_single_weights_have_a_bias_too(traced, text):
    steps = (
        "insert-probes | calibrate | insert-masks | choose-masks{sparsity=0.5} | "
        "insert-bias{of=weights targets=*down_proj} | choose-bias"
    )
    program = run(traced("llama"), steps, text)
    path = "model.layers.0.mlp.down_proj.weight"
    removed = program.tensor(path) * ~program.tensor(f"{path}_mask")
    wanted = removed @ program.tensor(f"{path}_probe_mean")
    assert torch.allclose(program.tensor(f"{path}_added_bias"), wanted, atol=1e-6)
    assert not program.has("model.layers.0.mlp.up_proj.weight_added_bias")


def test_refusals(traced, text):
    with pytest.raises(PipelineError, match=r"needs \['mask.channels', 'mask.heads'\]"):
        run(traced("llama"), "insert-bias", text)
    with pytest.raises(OptionError, match="no target has a mask"):
        run(traced("block"), "insert-masks{of=heads} | insert-bias{of=heads targets=up}", text)
