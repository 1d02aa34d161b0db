"""Matrices of experts, stored together, are weights like any other, each by the tokens sent to it."""

import pytest
import torch
from torch.nn.functional import silu
from zoo_models import small_model

from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import out_in, products
from sparsify.select.one_shot import OneShot
from sparsify.select.statistics import Statistics, statistics_of_each
from sparsify.select.weights import Target
from sparsify.tensors.masks import check_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight

TASK = "AutoModelForCausalLM"
# Stored `[experts, out, in]`, `[experts, in, out]`, and multiplied by all tokens.
FAMILIES = ("mixtral", "gpt_oss", "llama4_text")
OBSERVED = "insert-probes{gram=true} | calibrate{samples=8 batch=4} | insert-masks"
SECOND = "model.layers.1.mlp.experts"


def program_of(family="mixtral"):
    return trace(small_model(family, TASK), copy=True)


def columns(padded=False):
    """Sequences of 12 tokens, every other padded on the right."""
    ids = torch.randint(3, 96, (8, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def words(padded=False):
    return TensorData(columns(padded))


def text():
    return TextData(torch.randint(3, 96, (2000,), generator=torch.Generator().manual_seed(1)), 16)


def stacked(program):
    return [view for view in products(program) if view.stacked]


def run(program, text, data=None, report=None):
    return parse(text).run(program, Context(data=data), report=report)


def rows_by_hand(inputs):
    """What the matrices of every expert of the second layer of a Mixtral multiply, by transformers alone."""
    model, seen = small_model("mixtral", TASK), []
    experts = model.get_submodule(SECOND)
    experts.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    with torch.no_grad():
        model(**inputs)
    ((hidden, chosen),) = seen
    kept = inputs["attention_mask"].flatten().bool()
    hidden, chosen = hidden.reshape(-1, hidden.shape[-1])[kept], chosen[kept]
    first = [hidden[(chosen == expert).any(1)] for expert in range(len(experts.gate_up_proj))]
    pairs = zip(first, experts.gate_up_proj.detach(), strict=True)
    halves = [(rows @ weight.T).chunk(2, -1) for rows, weight in pairs]
    return {"gate_up_proj": first, "down_proj": [silu(gate) * up for gate, up in halves]}


@pytest.mark.parametrize("padded", [False, True])
def test_statistics_are_those_of_the_tokens_sent_to_each(padded):
    program = run(program_of(), OBSERVED, words(padded))
    wanted = rows_by_hand(columns(padded))
    for view in stacked(program):
        if not view.weight.startswith(SECOND):
            continue
        rows = wanted[view.weight.rpartition(".")[2]]
        found = statistics_of_each(program, view)
        assert [one.tokens for one in found] == [len(part) for part in rows]
        for one, part in zip(found, rows, strict=True):
            torch.testing.assert_close(one.mean, part.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.gram, part.T @ part, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.square, part.square().sum(0), rtol=1e-4, atol=1e-5)


def test_where_all_tokens_pass_all_experts_those_sent_elsewhere_are_no_tokens_of_one():
    program = run(program_of("llama4_text"), OBSERVED, words())
    model, chosen = small_model("llama4_text", TASK), []
    name = "model.layers.1.feed_forward"
    router = model.get_submodule(f"{name}.router")
    router.register_forward_hook(lambda _, args, out: chosen.append(out))
    with torch.no_grad():
        model(**columns())
    ((*_, logits),) = chosen
    sent = torch.bincount(logits.reshape(-1, logits.shape[-1]).argmax(1), minlength=4)
    for view in stacked(program):
        if view.weight.startswith(name):
            found = program.tensor(f"{view.weight}_probe_count")
            assert found.tolist() == sent.tolist()
            assert int(found.sum()) == 8 * 12


@pytest.mark.parametrize("score", ["magnitude", "wanda", "ria", "dsnot", "sparsegpt", "alps"])
def test_each_expert_is_pruned_as_a_linear_of_its_own(score):
    rows = rows_by_hand(columns())
    pipeline = OBSERVED + f" | choose-masks{{score={score} pattern=2:4}}"
    program = run(program_of(), pipeline, words())
    how = OneShot(score, Target.of(None, "2:4"))
    before = small_model("mixtral", TASK).get_submodule(SECOND)
    for view in stacked(program):
        if not view.weight.startswith(SECOND):
            continue
        name = view.weight.rpartition(".")[2]
        for expert, part in enumerate(rows[name]):
            mean = part.mean(0)
            scatter = (part - mean).square().sum(0)
            seen = Statistics(len(part), mean, scatter, None, part.T @ part)
            wanted, mask = how(getattr(before, name)[expert].detach(), seen)
            assert (program.tensor(view.mask)[expert] == mask).float().mean() > 0.99
            kept = program.tensor(view.weight)[expert] * mask
            assert (kept - wanted).abs().mean() < 0.02 * wanted.abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", ["wanda", "sparsegpt", "taylor"])
def test_a_pattern_lies_along_the_inputs_however_weights_are_stored(family, score):
    how = f"{OBSERVED} | choose-masks{{score={score} pattern=2:4}} | remove-probes | fold-masks"
    report = Report()
    program = run(program_of(family), how, text(), report)
    views = stacked(program)
    assert len(views) >= 2
    for view in views:
        rows = out_in(view, program.tensor(view.weight)).flatten(0, -2)
        check_nm(rows != 0, Pattern(2, 4))
    assert "stacks" not in "".join(row.note for row in report.rows)


def test_a_share_is_one_of_each_expert_or_of_all_together():
    per_expert = run(program_of(), "insert-masks | choose-masks{sparsity=0.5 scope=layer}")
    for view in stacked(per_expert):
        share = 1 - per_expert.tensor(view.mask).float().mean((1, 2))
        torch.testing.assert_close(share, torch.full_like(share, 0.5), rtol=0, atol=1e-3)
    rank = "insert-masks | choose-masks{sparsity=0.5 scope=global}"
    together = run(program_of(), rank)
    shares = [1 - together.tensor(view.mask).float().mean((1, 2)) for view in stacked(together)]
    assert torch.cat(shares).std() > 1e-3


def test_an_expert_that_saw_nothing_is_pruned_by_its_weights_and_said():
    program = program_of()
    router = next(path for path, _ in program.tensors() if path.endswith("0.mlp.gate.weight"))
    with torch.no_grad():  # every token is sent to the first two
        program.tensor(router).zero_()
    report = Report()
    run(program, OBSERVED + " | choose-masks{score=wanda sparsity=0.5}", words(), report)
    first = next(view for view in stacked(program) if ".0." in view.weight)
    counts = program.tensor(first.weight + "_probe_count")
    unseen = (counts == 0).nonzero().flatten().tolist()
    assert unseen
    mask, size = program.tensor(first.mask), program.tensor(first.weight).abs()
    for expert in unseen:  # ranked in each row
        worst_kept = size[expert].where(mask[expert], torch.inf).amin(1)
        best_gone = size[expert].where(~mask[expert], -torch.inf).amax(1)
        assert torch.all(best_gone <= worst_kept)
    assert "matrices of experts saw no token and were chosen by their weights alone" in "".join(
        row.note for row in report.rows
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_there_for_each_expert_and_fold(family):
    program = program_of(family)
    dense = program.run()[0]
    run(program, "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=3}")
    masked = program.run()[0]
    assert not torch.equal(masked, dense)
    for view in stacked(program):
        assert view.branch is not None
        a, b = program.tensor(view.branch.a), program.tensor(view.branch.b)
        experts, outputs, inputs = out_in(view, program.tensor(view.weight)).shape
        assert (a.shape, b.shape) == ((experts, 3, inputs), (experts, outputs, 3))
        assert not torch.equal(a[0], a[1])
        with torch.no_grad():
            b.normal_(0, 0.1)
    wanted = program.run()[0]
    assert not torch.allclose(wanted, masked, rtol=1e-3)
    run(program, "fold-lora | fold-masks")
    torch.testing.assert_close(program.run()[0], wanted, rtol=1e-4, atol=1e-5)
    for view in stacked(program):
        rows = out_in(view, program.tensor(view.weight)).flatten(0, -2)
        check_nm(rows != 0, Pattern(2, 4))


def test_a_rank_that_no_expert_has_room_for_is_refused():
    with pytest.raises(OptionError, match=r"rank=60 does not fit @.*experts.*it must be 1 to"):
        run(program_of(), "insert-lora{rank=60 targets=*experts*}")


def test_branches_get_other_ranks_and_weights_stay():
    how = (
        "insert-masks | choose-masks{sparsity=0.5} | insert-lora{rank=4 targets=*experts*} | "
        "train{steps=2 update=lora batch=2} | allocate-ranks{mean=4 largest=8 samples=4}"
    )
    program = run(program_of(), how, text())
    ranks = {program.tensor(view.branch.a).shape[-2] for view in stacked(program)}
    assert len(ranks) == 2
    assert sum(ranks) == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_that_of_each_row(family):
    program = program_of(family)
    plain = {v.weight: out_in(v, program.tensor(v.weight)).clone() for v in stacked(program)}
    dense = program.run()[0]
    run(program, "insert-quantizers{values=int8 group=32 activations=false}")
    assert torch.equal(program.run()[0], dense)
    run(program, "choose-scales | fold-quantizers")
    for view in stacked(program):
        rows = plain[view.weight].flatten(0, -2)
        scales = absmax_scales(rows, 32, 8)
        wanted = dequantize(round_weight(rows, scales, 32, 8), scales, 32)
        found = out_in(view, program.tensor(view.weight)).flatten(0, -2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_move_while_experts_are_trained(family):
    program = run(program_of(family), "insert-masks | choose-masks{pattern=2:4}")
    before = {view.mask: program.tensor(view.mask).clone() for view in stacked(program)}
    how = "train{steps=4 batch=2 lr=0.05 masks=every{steps=2 pattern=2:4} decay=sr-ste}"
    run(program, how, text())
    assert any(not torch.equal(program.tensor(path), mask) for path, mask in before.items())
    for view in stacked(program):
        mask = out_in(view, program.tensor(view.mask)).flatten(0, -2)
        check_nm(mask, Pattern(2, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_of_rows_are_learnt_and_fold(family):
    program = program_of(family)
    dense = program.run()[0]
    run(program, "insert-scales{blocks=2}")
    torch.testing.assert_close(program.run()[0], dense, rtol=0, atol=0)
    for view in stacked(program):
        with torch.no_grad():
            program.tensor(view.row_scales).uniform_(0.5, 1.5)
    outputs = program.module(**program.sample)
    outputs[0].square().mean().backward()
    gradients = [program.tensor(view.row_scales).grad for view in stacked(program)]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    wanted = program.run()[0]
    run(program, "fold-scales")
    torch.testing.assert_close(program.run()[0], wanted, rtol=1e-4, atol=1e-6)


def test_masks_of_weights_go_with_the_experts_that_are_removed():
    program = run(
        program_of(), "insert-masks | choose-masks{pattern=2:4} | insert-masks{of=experts}"
    )
    for path in [path for path, _ in program.tensors() if path.endswith("_experts_mask")]:
        kept = torch.ones_like(program.tensor(path))
        kept[1] = False
        program.put(path, kept)
    masked = program.run()[0]
    run(program, "prune-experts")
    torch.testing.assert_close(program.run()[0], masked, rtol=1e-4, atol=1e-5)
    for view in stacked(program):
        assert program.tensor(view.mask).shape == program.tensor(view.weight).shape
        assert len(program.tensor(view.weight)) == 3


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (
            "insert-masks | insert-probes{of=routers} | calibrate | choose-clusters{experts=2}",
            "fold",
        ),
        (
            "insert-lora{rank=2} | insert-probes{of=routers} | calibrate | choose-clusters{experts=2}",
            "fold-l",
        ),
        (
            "insert-probes{of=linears,routers} | calibrate{samples=4} | choose-clusters{experts=2}",
            "what probes saw of each expert says nothing of merged ones",
        ),
        ("insert-masks{of=experts} | insert-quantizers", "mask.experts"),
        ("insert-quantizers | insert-masks{of=channels}", "quantizers"),
    ],
)
def test_what_would_mean_or_round_parts_of_experts_is_refused(pipeline, sentence):
    with pytest.raises((OptionError, PipelineError), match=sentence):
        run(program_of(), pipeline, text())


def test_a_width_that_half_precision_cannot_multiply_is_refused_with_the_way_out():
    model = small_model("qwen3_moe", TASK).to(torch.bfloat16)
    program = trace(model, copy=True)
    choose = (
        "insert-masks{of=channels targets=*experts*} | choose-masks{of=channels sparsity=0.4%s}"
    )
    with pytest.raises(OptionError, match="choose them with multiple=8"):
        run(program.clone(), f"{choose % ' targets=*experts*'} | prune-channels")
    made = run(program, f"{choose % ' targets=*experts* multiple=8'} | prune-channels")
    assert made.run()[0].isfinite().all()
