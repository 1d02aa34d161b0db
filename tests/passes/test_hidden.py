"""The residual width: norms average over what is kept, under the mask as after removal."""

import pytest
import torch
from torch.nn import functional

from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.features.width_mask import width_masks
from sparsify.ir.ops.masked_norms import masked_layer_norm, masked_mean, masked_rms_norm
from sparsify.ir.run.values import Values
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import feature_size, linears
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced as family_traced
from tests.ir.axes.masked import outputs

KEPT = [0, 2, 3, 7]


def run(program, pipeline):
    return parse(pipeline).run(program, Context())


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((3, 5, 8), (8,), (8,)))
    mask = torch.zeros(8, dtype=torch.bool)
    mask[KEPT] = True
    return x, mask, weight, bias


def test_norms_of_what_is_kept(values):
    x, mask, weight, bias = values
    few, small = x[..., KEPT], (4,)
    found = masked_layer_norm(x, mask, [8], weight, bias, 1e-5)[..., KEPT]
    wanted = functional.layer_norm(few, small, weight[KEPT], bias[KEPT], 1e-5)
    torch.testing.assert_close(found, wanted)
    found = masked_rms_norm(x, mask, [8], weight, 1e-5)[..., KEPT]
    torch.testing.assert_close(found, functional.rms_norm(few, small, weight[KEPT], 1e-5))
    torch.testing.assert_close(masked_mean(x, mask, [-1], True), few.mean(-1, keepdim=True))


def test_with_everything_kept_they_are_bitwise_the_plain_ops(values):
    x, mask, weight, bias = values
    whole = torch.ones_like(mask)
    plain = functional.layer_norm(x, (8,), weight, bias)
    assert torch.equal(masked_layer_norm(x, whole, [8], weight, bias), plain)
    assert torch.equal(masked_rms_norm(x, whole, [8]), functional.rms_norm(x, (8,)))
    assert torch.equal(masked_mean(x, whole, [-1]), x.mean(-1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_features_masked_equals_pruned(family, tmp_path):
    dense = family_traced(family)
    text = to_text(dense)
    masked = run(dense.clone(), "insert-masks{of=hidden}")
    (mask,) = width_masks(masked)
    masked.tensor(mask.path)[
        torch.randperm(64, generator=torch.Generator().manual_seed(0))[:24]
    ] = False
    pruned = run(masked.clone(), "prune-hidden")
    assert (
        largest_difference(outputs(pruned, pruned.module), outputs(masked, masked.module)) <= 1e-5
    )
    assert largest_difference(outputs(pruned, pruned.module), outputs(dense, dense.module)) > 1e-2
    assert all(64 not in value.shape for path, value in pruned.tensors() if not other(path))
    again = load(save(masked, tmp_path / "p"))
    assert to_text(again) == to_text(masked)
    assert to_text(run(dense, "insert-masks{of=hidden} | prune-hidden")) == text


def other(path):
    """Dimensions of 64 that are not the width: query heads of the grouped family, positions."""
    return "q_proj" in path or "o_proj" in path or "wpe" in path or "attn" in path


def test_a_tied_embedding_is_cut_once_and_the_lightest_features_go():
    program = family_traced("gpt2")
    with torch.no_grad():
        for _, value in program.tensors():
            if value.dim() == 2 and value.shape[-1] == 64:
                value[:, 5] *= 0.01
    masked = run(
        program, "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.2 multiple=8}"
    )
    (mask,) = width_masks(masked)
    kept = masked.tensor(mask.path)
    assert int(kept.sum()) == 56
    assert not kept[5]
    pruned = run(masked, "prune-hidden")
    assert pruned.tensor("lm_head.weight").shape == (60, 56)


def test_heads_and_channels_go_under_the_mask_of_the_width(traced):
    steps = "insert-masks{of=hidden,heads,channels} | choose-masks{of=hidden sparsity=0.25}"
    steps += " | choose-masks{of=heads sparsity=0.5} | choose-masks{of=channels sparsity=0.5}"
    masked = run(traced("llama"), steps)
    one = run(masked.clone(), "prune-heads | prune-hidden | prune-channels")
    two = run(masked.clone(), "prune-hidden | prune-channels | prune-heads")
    assert to_text(one) == to_text(two)
    for a, b in zip(masked.run(), one.run(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_width_that_leaves_the_program_is_refused_with_the_reason(traced):
    with pytest.raises(OptionError, match="no prunable hidden size: graph output"):
        run(traced("bert-base"), "insert-masks{of=hidden}")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_features_by_what_norms_give(family):
    program = family_traced(family)
    ids = torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(2))
    data = TextData(ids.flatten(), 12)
    seen = norm_outputs(program.clone(), ids)
    wanted = sum(v.reshape(6, 12, 64).abs().mean(1).square().sum(0) for v in seen)
    text = (
        "insert-probes | calibrate{samples=6 batch=2} | insert-masks{of=hidden} | "
        "choose-masks{of=hidden score=activation sparsity=0.5} | remove-probes"
    )
    masked = parse(text).run(program, Context(data=data))
    (mask,) = width_masks(masked)
    kept = masked.tensor(mask.path)
    assert int(kept.sum()) == 32
    assert float(wanted[kept].min()) >= float(wanted[~kept].max())
    parse("prune-hidden").run(masked)


def norm_outputs(program, ids):
    """What linears of the layers read `[batch, length, hidden]`, each once; found by their weights."""
    views = [view for view in linears(program) if feature_size(view.x) == 64]
    heads = [view for view in views if view.weight.startswith("lm_head")]
    wanted = dict.fromkeys(view.x for view in views if view not in heads)
    attention = {
        view.x for view in views if "o_proj" in view.weight or "attn.c_proj" in view.weight
    }
    return list(
        Values(program, [x for x in wanted if x not in attention]).of({"input_ids": ids}).values()
    )


def test_a_width_to_a_size(traced):
    masked = run(
        traced("llama"), "insert-masks{of=hidden} | choose-masks{of=hidden to=shape{hidden=40}}"
    )
    (mask,) = width_masks(masked)
    assert int(masked.tensor(mask.path).sum()) == 40
    with pytest.raises(OptionError, match="hidden=65 cannot be kept of the 64 hidden that"):
        run(
            traced("llama"), "insert-masks{of=hidden} | choose-masks{of=hidden to=shape{hidden=65}}"
        )
