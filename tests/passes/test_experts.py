"""Experts: masked and removed alike, with their rows of the router; at least as many as are chosen."""

import pytest
import torch

from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.expert_mask import expert_masks
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced as family_traced
from tests.ir.axes.masked import outputs

PARTS = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")


def run(program, pipeline):
    return parse(pipeline).run(program, Context())


def test_other_experts_at_every_router(tmp_path):
    dense = family_traced("mixtral")
    masked = run(dense.clone(), "insert-masks{of=experts}")
    first, second = expert_masks(masked)
    masked.tensor(first.path)[[0, 3]] = False
    masked.tensor(second.path)[[1, 2, 4, 5]] = False
    broken = masked.clone()
    broken.tensor(first.path)[2:] = False
    with pytest.raises(
        OptionError, match=r"1 of the experts at .* stay, but 2 are chosen at a time"
    ):
        run(broken, "prune-experts")
    pruned = run(masked.clone(), "prune-experts")
    assert (
        largest_difference(outputs(pruned, pruned.module), outputs(masked, masked.module)) <= 1e-5
    )
    assert largest_difference(outputs(pruned, pruned.module), outputs(dense, dense.module)) > 1e-2
    for name in PARTS:
        path = f"model.layers.0.mlp.{name}"
        assert torch.equal(pruned.tensor(path), dense.tensor(path)[[1, 2, 4, 5]])
        assert pruned.tensor(f"model.layers.1.mlp.{name}").shape[0] == 2
    again = load(save(pruned, tmp_path / "p"))
    assert to_text(again) == to_text(pruned)
    assert [g.size for g in groups(analyse(pruned)) if g.kind == "experts"] == [4, 2]


def test_choosing_leaves_as_many_as_a_token_is_sent_to():
    program = run(family_traced("mixtral"), "insert-masks{of=experts}")
    with torch.no_grad():
        program.tensor("model.layers.0.mlp.experts.down_proj")[4] *= 5
    few = run(program.clone(), "choose-masks{of=experts sparsity=0.9}")
    assert [int(few.tensor(m.path).sum()) for m in expert_masks(few)] == [2, 2]
    assert bool(few.tensor(expert_masks(few)[0].path)[4])
    even = run(program.clone(), "choose-masks{of=experts sparsity=0.5 multiple=4}")
    assert [int(even.tensor(m.path).sum()) for m in expert_masks(even)] == [4, 4]


def test_experts_by_how_often_they_are_chosen_and_by_their_row_of_the_router():
    program = family_traced("mixtral")
    ids = torch.randint(0, 60, (48,), generator=torch.Generator().manual_seed(2))
    steps = (
        "insert-masks{of=experts} | insert-probes{of=routers} | calibrate{samples=4} | "
        "choose-masks{of=experts score=frequency sparsity=0.5}"
    )
    chosen = parse(steps).run(program.clone(), Context(data=TextData(ids, 12)))
    for mask in expert_masks(chosen):
        hits = chosen.tensor(f"{mask.weight}_route_probe_hits")
        assert int(hits.sum()) == 48 * 2
        assert torch.equal(chosen.tensor(mask.path), hits >= hits.sort().values[3])
    with torch.no_grad():
        program.tensor("model.layers.0.mlp.gate.weight")[[1, 4]] *= 0.01
    steps = "insert-masks{of=experts} | choose-masks{of=experts score=router sparsity=0.34}"
    first, _ = expert_masks(chosen := run(program, steps))
    assert chosen.tensor(first.path).tolist() == [True, False, True, True, False, True]
    with pytest.raises(PipelineError, match="stats"):
        run(family_traced("mixtral"), steps.replace("router", "frequency"))


def test_experts_by_what_the_loss_says_of_them():
    program = family_traced("mixtral")
    ids = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(2))
    data = TextData(ids.flatten(), 12)
    paths = [f"model.layers.0.mlp.{name}" for name in PARTS]
    mean = [torch.zeros_like(program.tensor(path)) for path in paths]
    for row in ids:
        logits = program.module(*program.complete({"input_ids": row[None]}).values())[0]
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], row[1:])
        found = torch.autograd.grad(loss, [program.tensor(path) for path in paths])
        mean = [total + value / 4 for total, value in zip(mean, found, strict=True)]
    wanted = sum(
        (program.tensor(path).detach() * value).abs().flatten(1).sum(1)
        for path, value in zip(paths, mean, strict=True)
    )
    text = "insert-masks{of=experts} | choose-masks{of=experts score=first-order sparsity=0.5}"
    masked = parse(text).run(program, Context(data=data))
    kept = masked.tensor(expert_masks(masked)[0].path)
    assert set(kept.nonzero()[:, 0].tolist()) == set(wanted.topk(3).indices.tolist())


def test_channels_of_experts_are_folded_where_they_stand():
    steps = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    masked = run(family_traced("qwen3-moe"), steps)
    folded = run(masked.clone(), "fold-masks{of=channels}")
    assert (
        largest_difference(outputs(folded, folded.module), outputs(masked, masked.module)) <= 1e-5
    )
    weight = folded.tensor("model.layers.0.mlp.experts.down_proj")
    assert int((weight.abs().sum((0, 1)) == 0).sum()) == 12


def test_refusals(traced):
    with pytest.raises(OptionError, match="the program has no prunable experts"):
        run(traced("llama"), "insert-masks{of=experts}")
    with pytest.raises(
        OptionError, match=r"no target is a router, as @model\.layers\.0\.mlp\.gate"
    ):
        run(family_traced("mixtral"), "insert-masks{of=experts targets=*.q_proj}")
