"""Programs whose experts are merged go on: stored, pruned, trained, with a cache, in ONNX, as a folder."""

import json

import pytest
import torch

from exporters.huggingface import Huggingface
from exporters.onnx import Onnx
from exporters.onnx_decode import OnnxDecode
from sparsify.data.sequences import TextData
from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.export import check_exports, write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import ExportError, PipelineError
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.walk import analyse
from sparsify.ir.decode.variant import decoder
from sparsify.ir.features.expert_mask import expert_masks
from sparsify.ir.features.merged_experts import merged_experts
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.tensors.precision import largest_difference, relative_difference
from tests.ir.axes.families import traced as family_traced

OBSERVED = "insert-probes{of=routers} | calibrate{samples=16}"
SHARED = f"{OBSERVED} | choose-clusters{{experts=3}} | remove-probes | merge-experts"
SLICED = (
    f"insert-masks{{of=experts}} | {OBSERVED} | choose-clusters{{experts=3 gates=sliced}} | "
    "remove-probes | prune-experts"
)
CHANNELS = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5} | prune-channels"
EXPERTS = "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5} | prune-experts"
HIDDEN = "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.5} | prune-hidden"
HEADS = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5} | prune-heads"
LAYERS = "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.25} | prune-layers{of=blocks}"
FAMILIES = ["mixtral", "qwen2-moe", "qwen3-moe"]
DATA = TextData(torch.randint(0, 60, (480,), generator=torch.Generator().manual_seed(5)), 12)


def run(program, pipeline):
    return parse(pipeline).run(program.clone(), Context(data=DATA))


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_stay_and_the_axes_are_read(family, tmp_path):
    clustered = run(family_traced(family), SHARED.removesuffix(" | merge-experts"))
    merged = run(clustered, "merge-experts")
    assert largest_difference(clustered.run(), merged.run()) <= 1e-6
    found = groups(analyse(merged))
    assert [g.size for g in found if g.kind == "experts" and g.prunable] == [6, 6]
    inside = [g for g in found if any(".experts." in m.path for m in g.members)]
    assert [(g.kind, g.size, g.prunable) for g in inside if g.kind == "channels"] == [
        ("channels", 48 if family == "mixtral" else 24, True)
    ] * 2
    assert [(g.size, g.prunable) for g in inside if g.kind == "other"] == [(3, False)] * 2
    again = load(save(merged, tmp_path / "p"))
    assert to_text(again) == to_text(merged)
    assert again.plan == merged.plan
    assert largest_difference(again.run(), merged.run()) == 0
    assert count(merged).parameters < count(clustered).parameters
    assert count(merged).multiply_adds == count(clustered).multiply_adds


@pytest.mark.parametrize("steps", [CHANNELS, EXPERTS, HIDDEN, HEADS, LAYERS])
@pytest.mark.parametrize("order", ["before", "after"])
def test_other_passes_and_the_cache(steps, order):
    """Pruned before or behind the merge; the decode variant replays both in their order."""
    program = family_traced("mixtral")
    pieces = [steps, SHARED] if order == "before" else [SHARED, steps]
    made = run(program, " | ".join(pieces))
    counts = [item.count for item in merged_experts(made)]
    assert counts == [3] * (len(counts) if steps == LAYERS else 2)
    assert counts
    # It holds itself against the program, in two steps through the cache.
    variant = decoder(made)
    assert [item.count for item in merged_experts(variant)] == counts


@pytest.mark.parametrize(
    ("exporter", "family", "clusters"),
    [
        (Onnx(), "mixtral", 1),
        (Onnx(), "qwen3-moe", 3),
        (OnnxDecode(), "mixtral", 3),
        (OnnxDecode(), "qwen2-moe", 2),
    ],
)
def test_onnx(exporter, family, clusters, tmp_path):
    made = run(family_traced(family), SHARED.replace("=3", f"={clusters}"))
    write_checked(exporter, made, tmp_path)


def test_what_was_merged_is_trained():
    made = run(family_traced("mixtral"), SHARED)
    trained = run(made, "train{steps=3 batch=4 lr=0.01}")
    for name in ("gate.weight", "experts.gate_up_proj"):
        path = f"model.layers.0.mlp.{name}"
        assert relative_difference(made.tensor(path).detach(), trained.tensor(path).detach()) > 1e-3
    assert torch.equal(
        made.tensor(merged_experts(made)[0].path), trained.tensor(merged_experts(made)[0].path)
    )


def test_weights_masked_in_a_merged_program():
    made = run(family_traced("mixtral"), SHARED)
    pruned = run(made, "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}")
    folded = run(pruned, "fold-masks{of=channels}")
    assert largest_difference(pruned.run(), folded.run()) <= 1e-5


def test_a_second_time_is_refused():
    made = run(family_traced("mixtral"), SHARED)
    with pytest.raises(PipelineError, match="experts are merged once: choose fewer clusters"):
        run(made, f"{OBSERVED} | choose-clusters{{experts=2}}")


@pytest.mark.parametrize(
    ("family", "entry"), [("mixtral", "num_local_experts"), ("qwen2-moe", "num_experts")]
)
def test_a_folder_of_the_sliced_form(family, entry, tmp_path):
    sliced = run(family_traced(family), SLICED)
    folder = write_checked(Huggingface(), sliced, tmp_path)
    assert json.loads((folder / "config.json").read_text())[entry] == 3


def test_no_folder_of_the_shared_form(tmp_path):
    made = run(family_traced("mixtral"), SHARED)
    said = "huggingface cannot hold merged-experts; give choose-clusters gates=sliced and put prune-experts"
    with pytest.raises(ExportError, match=said):
        write_checked(Huggingface(), made, tmp_path)
    with pytest.raises(ExportError, match=said):  # before a run
        check_exports(family_traced("mixtral"), ["huggingface"], frozenset({"merged-experts"}))


def test_masks_of_experts_in_a_merged_program():
    made = run(family_traced("mixtral"), f"{SHARED} | insert-masks{{of=experts}}")
    first, second = expert_masks(made)
    made.tensor(first.path)[[0, 3]] = False
    made.tensor(second.path)[[1, 2]] = False
    pruned = run(made, "prune-experts")
    assert largest_difference(made.run(), pruned.run()) <= 1e-5
    item = merged_experts(pruned)[0]
    kept = made.tensor(item.path)[[1, 2, 4, 5]]
    assert torch.equal(pruned.tensor(item.path), kept)
    assert pruned.tensor("model.layers.0.mlp.experts.down_proj").shape[0] == 3
