"""Layers and residual blocks: found in every family, masked and removed alike, any of them."""

import pytest
import torch

from passes.choose_masks import ChooseMasks
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.residual import blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import block_masks
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced as family_traced
from tests.ir.axes.masked import outputs


def run(program, pipeline):
    return parse(pipeline).run(program, Context())


def moved(masked, pruned):
    return largest_difference(outputs(masked, masked.module), outputs(pruned, pruned.module))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert", "gpt-neox"])
@pytest.mark.parametrize("kind", ["layers", "blocks"])
def test_any_choice_masked_equals_pruned(family, kind):
    dense = family_traced(family)
    count = len(blocks(analyse(dense), kind))
    assert count == (2 if kind == "layers" else 4)
    for gone in (0, count - 1):
        masked = run(dense.clone(), f"insert-masks{{of={kind}}}")
        places = block_masks(masked, kind)
        masked.tensor(places[gone].path).fill_(False)
        pruned = run(masked.clone(), f"prune-layers{{of={kind}}}")
        assert moved(masked, pruned) <= 1e-6
        assert moved(dense, pruned) > 1e-3
        assert len(list(pruned.tensors())) < len(list(dense.tensors()))
        assert pruned.plan[kind] == [[places[gone].path]]
        assert len(blocks(analyse(pruned), "blocks")) < len(blocks(analyse(dense), "blocks"))


def test_blocks_side_by_side_may_both_go():
    masked = run(family_traced("gpt-neox"), "insert-masks{of=blocks}")
    for place in block_masks(masked, "blocks")[:2]:
        masked.tensor(place.path).fill_(False)
    both = run(masked.clone(), "prune-layers{of=blocks}")
    assert moved(masked, both) <= 1e-6
    whole = run(family_traced("gpt-neox"), "insert-masks{of=layers}")
    whole.tensor(block_masks(whole, "layers")[0].path).fill_(False)
    whole = run(whole, "prune-layers")
    assert to_text(whole) == to_text(both)


def test_a_layer_is_its_blocks(traced):
    masked = run(traced("llama"), "insert-masks{of=layers,blocks}")
    for path in (m.path for m in block_masks(masked, "blocks")[2:]):
        masked.tensor(path).fill_(False)
    blockwise = run(masked, "prune-layers | prune-layers{of=blocks}")
    layers = run(traced("llama"), "insert-masks{of=layers}")
    layers.tensor(block_masks(layers, "layers")[1].path).fill_(False)
    assert to_text(run(layers, "prune-layers")) == to_text(blockwise)


def test_the_lightest_layers_go_and_come_back_from_disk(traced, tmp_path):
    program = traced("llama")
    with torch.no_grad():
        for path, value in program.tensors():
            if ".layers.0." in path and value.dim() == 2:
                value *= 0.5
    run(program, "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.5} | prune-layers")
    assert not any(".layers.0." in path for path, _ in program.tensors())
    again = load(save(program, tmp_path / "p"))
    assert to_text(again) == to_text(program)
    for one, two in zip(program.run(), again.run(), strict=True):
        assert torch.equal(one, two)


def test_all_other_removals_follow(traced):
    step = "insert-masks{of=heads,channels} | choose-masks{of=heads sparsity=0.5} | "
    step += "choose-masks{of=channels sparsity=0.5}"
    layers = "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.5}"
    masked = run(traced("llama"), f"{layers} | {step}")
    pruned = run(masked.clone(), "prune-layers | prune-heads | prune-channels")
    other = run(masked.clone(), "prune-channels | prune-heads | prune-layers")
    assert to_text(pruned) == to_text(other)
    for one, two in zip(masked.run(), pruned.run(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_targets_name_layers(traced):
    program = run(traced("llama"), "insert-masks{of=layers targets=*.0.*}")
    assert [m.path for m in block_masks(program, "layers")] == [
        "model.layers.0.mlp.down_proj.weight_layers_mask"
    ]


def test_refusals(traced):
    with pytest.raises(OptionError, match="no target lies in one of the layers, as @"):
        run(traced("llama"), "insert-masks{of=layers targets=lm_head}")
    with pytest.raises(OptionError, match=r"a sparsity of 0\.1 with multiple=1 removes none of 2"):
        run(traced("llama"), "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.1}")
    with pytest.raises(OptionError, match="score=wanda is not for layers; choose magnitude"):
        ChooseMasks(of=("layers",), score="wanda", sparsity=0.5).check(traced("llama"))
    with pytest.raises(PipelineError, match=r"put prune-layers before it"):
        run(traced("llama"), "insert-masks{of=layers,blocks} | prune-layers{of=blocks}")
    program = run(traced("llama"), "insert-masks{of=layers}")
    for mask in block_masks(program, "layers"):
        program.tensor(mask.path).fill_(False)
    with pytest.raises(OptionError, match="all 2 layers would go; keep at least one"):
        run(program, "prune-layers")
