import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text

INSERT = "insert-masks{of=heads,channels}"
UNIFORM = "choose-masks{of=heads sparsity=0.5} | choose-masks{of=channels sparsity=0.5}"
INSIDE = "choose-masks{of=heads sparsity=0.5 rule=inside} | choose-masks{of=channels sparsity=0.25 multiple=8}"  # noqa: E501
UNEVEN = (
    "choose-masks{of=heads sparsity=0.4 scope=global} | "
    "choose-masks{of=channels sparsity=0.5 scope=global}"
)
PRUNE = "prune-heads | prune-channels"
GROUPED = ("llama", "qwen2", "qwen3")


def batches():
    generator = torch.Generator().manual_seed(8)
    for batch, length in ((3, 17), (1, 5), (4, 40)):
        ids = torch.randint(3, 300, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        yield {"input_ids": ids, "attention_mask": mask}


def assert_equal_outputs(one, two, tolerance):
    for batch in (None, *batches()):
        for a, b in zip(one.run(batch), two.run(batch), strict=True):
            assert bool(((a - b).abs() <= tolerance * a.abs().max()).all())


def run(program, pipeline):
    return parse(pipeline).run(program, Context())


def tilted(program):
    """Layers of different weight, so that a global ranking gives them different sizes."""
    with torch.no_grad():
        for path, value in program.tensors():
            if value.dim() == 2 and (".1." in path):
                value *= 1.6
    return program


def test_pruned_equals_masked_with_other_sizes_in_every_layer(family, traced, tmp_path):
    masked = run(tilted(traced(family)), f"{INSERT} | {UNEVEN}")
    sizes = {m.path: int(masked.tensor(m.path).sum()) for m in group_masks(masked)}
    assert any(not bool(masked.tensor(path).all()) for path in sizes)
    pruned = run(masked.clone(), PRUNE)
    assert_equal_outputs(masked, pruned, 1e-5)
    for path, kept in sizes.items():
        weight, _, kind = path.removesuffix("_mask").rpartition("_")
        inputs = kept if kind == "channels" else 16 * kept
        assert inputs in pruned.tensor(weight).shape, path
        assert not pruned.has(path)
    again = load(save(pruned, tmp_path / "p"))
    assert to_text(again) == to_text(pruned)
    assert_equal_outputs(pruned, again, 0)


@pytest.mark.parametrize("choice", [UNIFORM, INSIDE])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_pruned_equals_masked_under_both_rules(choice, family, traced):
    masked = run(traced(family), f"{INSERT} | {choice}")
    pruned = run(masked.clone(), PRUNE)
    assert_equal_outputs(masked, pruned, 1e-5)
    if family in GROUPED:
        path = "model.layers.0.self_attn."
        inside = "inside" in choice
        assert pruned.tensor(f"{path}q_proj.weight").shape == (32, 64)
        assert pruned.tensor(f"{path}k_proj.weight").shape == (32 if inside else 16, 64)
        assert pruned.tensor(f"{path}v_proj.weight").shape == (32 if inside else 16, 64)
        assert pruned.tensor(f"{path}o_proj.weight").shape == (64, 32)


def test_kept_rows_are_the_old_ones_in_order(traced):
    program = run(
        traced("llama"), "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    )
    path = "model.layers.1.mlp."
    kept = program.tensor(f"{path}down_proj.weight_channels_mask").nonzero().flatten()
    dense = traced("llama")
    run(program, "prune-channels")
    for name in ("up_proj", "gate_proj"):
        whole = dense.tensor(f"{path}{name}.weight")
        assert torch.equal(program.tensor(f"{path}{name}.weight"), whole[kept])
    whole = dense.tensor(f"{path}down_proj.weight")
    assert torch.equal(program.tensor(f"{path}down_proj.weight"), whole[:, kept])


def test_pruning_twice_adds_to_the_plan(traced):
    step = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5} | prune-channels"
    program = run(traced("block"), f"{step} | {step}")
    assert program.tensor("up.weight").shape == (3, 8)
    assert len(program.plan["axes"]) == 2


def test_weight_masks_and_branches_survive_pruning(traced):
    masked = run(
        traced("llama"),
        "insert-masks{of=heads,channels,weights} | choose-masks{sparsity=0.5} | insert-lora{rank=2} | "
        + UNIFORM,
    )
    pruned = run(masked.clone(), PRUNE)
    assert_equal_outputs(masked, pruned, 1e-5)
    folded = run(pruned.clone(), "fold-lora | fold-masks")
    assert_equal_outputs(pruned, folded, 1e-5)


def test_heads_that_break_the_ratio_of_kv_groups_are_refused(traced):
    program = run(traced("llama"), "insert-masks{of=heads}")
    with torch.no_grad():
        program.tensor("model.layers.0.self_attn.o_proj.weight_heads_mask")[0] = False
    with pytest.raises(
        OptionError, match=r"would keep \[1, 2\] query heads; every kept group must"
    ):
        run(program, "prune-heads")


def test_masks_that_leave_nothing_are_refused(traced):
    program = run(traced("block"), "insert-masks{of=channels}")
    program.tensor("down.weight_channels_mask").zero_()
    with pytest.raises(SparsifyError, match=r"all 12 channels at .* would go; keep at least one"):
        run(program, "prune-channels")


def test_folding_channel_masks_leaves_zero_columns(traced):
    program = run(
        traced("mlp"), "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    )
    mask = program.tensor("down.weight_channels_mask").clone()
    before = program.run()[0]
    run(program, "fold-masks{of=channels}")
    assert not bool(program.tensor("down.weight")[:, ~mask].any())
    assert torch.allclose(program.run()[0], before, atol=1e-6)


def test_groups_without_a_masked_linear_among_the_targets_are_refused(traced):
    with pytest.raises(OptionError) as caught:
        run(traced("block"), "insert-masks{of=channels targets=out}")
    assert str(caught.value) == (
        "pass 1 of 1, 'insert-masks{of=channels targets=out}', no target takes prunable channels in, as "
        "@down.weight does"
    )


@pytest.mark.parametrize("kind", ["heads", "channels"])
def test_branches_beside_a_linear_lose_what_it_loses(kind, traced):
    """They read its input, too: what is masked for the linear alone would come back through them."""
    program = run(traced("llama"), "insert-adapters{ratio=0.3}")
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith("_adapter_b"):
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    steps = f"insert-masks{{of={kind}}} | choose-masks{{of={kind} sparsity=0.5}} | prune-{kind}"
    before = program.tensor("model.layers.0.self_attn.o_proj.weight_adapter_a").shape
    run(program, steps)
    after = program.tensor("model.layers.0.self_attn.o_proj.weight_adapter_a").shape
    assert after == ((before[0], before[1] // 2) if kind == "heads" else before)
