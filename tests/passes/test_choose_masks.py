import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears, out_in
from sparsify.select.gradients import mask_derivatives, weight_gradients
from sparsify.select.groups import sites
from sparsify.train.losses import TaskLoss


def choose(program, pipeline, data=None):
    return parse(pipeline).run(program, Context(data=data))


def mask_of(program, path, kind=""):
    return program.tensor(f"{path}{'_' + kind if kind else ''}_mask")


def fill(program, path, value):
    with torch.no_grad():
        program.tensor(path).copy_(value)


def zeros(mask):
    return int((~mask).sum())


def test_magnitude_keeps_the_larger_weight_whatever_its_sign(traced):
    program = traced("mlp")
    row = torch.tensor([3.0, -4.0, 1.0, 0.5, -0.1, 0.2, -0.4, 0.3, 1.0, 1.0, 1.0, 1.0])
    fill(program, "down.weight", row.expand(8, 12))
    choose(program, "insert-masks | choose-masks{pattern=2:4 targets=down}")
    wanted = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0]).bool()
    assert torch.equal(mask_of(program, "down.weight"), wanted.expand(8, 12))
    assert bool(mask_of(program, "up.weight").all())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "1:2"])
def test_patterns_are_exact_in_every_group_of_inputs(pattern, traced):
    kept, of = map(int, pattern.split(":"))
    program = choose(traced("gpt2"), f"insert-masks | choose-masks{{pattern={pattern}}}")
    masked = [view for view in linears(program) if view.mask]
    assert len(masked) == 8
    for view in masked:
        mask = out_in(view, program.tensor(view.mask))
        assert bool((mask.reshape(mask.shape[0], -1, of).sum(-1) == kept).all())


def test_scopes_give_exact_counts(traced):
    def count(scope):
        program = traced("mlp")
        fill(program, "up.weight", program.tensor("up.weight") * 1e6)
        choose(program, f"insert-masks | choose-masks{{sparsity=0.3 scope={scope}}}")
        return mask_of(program, "up.weight"), mask_of(program, "down.weight")

    up, down = count("row")
    assert (~up).sum(1).tolist() == [2] * 12
    assert (~down).sum(1).tolist() == [3] * 8
    up, down = count("layer")
    assert (zeros(up), zeros(down)) == (28, 28)
    assert len(set((~up).sum(1).tolist())) > 1
    up, down = count("global")
    assert (zeros(up), zeros(down)) == (0, 57)
    up, down = count("auto")
    assert (zeros(up), zeros(down)) == (28, 28)


@pytest.mark.parametrize(("score", "equal_rows"), [("magnitude", False), ("wanda", True)])
def test_scope_auto_is_that_of_the_paper(score, equal_rows, traced, text):
    program = choose(
        traced("llama"),
        f"insert-probes | calibrate{{samples=4}} | insert-masks | choose-masks{{score={score} sparsity=0.5}}",
        text,
    )
    view = next(v for v in linears(program) if v.mask)
    rows = program.tensor(view.mask).sum(1).tolist()
    assert (len(set(rows)) == 1) == equal_rows


def test_wanda_weighs_by_the_norm_of_the_input(traced):
    program = choose(traced("mlp"), "insert-probes | insert-masks")
    program.features |= {"stats"}
    norms = torch.tensor([9.0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12])
    for path, size in (("up", 8), ("down", 12)):
        program.tensor(f"{path}.weight_probe_count").fill_(5)
        fill(program, f"{path}.weight_probe_scatter", norms[:size].square())
    weight = torch.ones(8, 12)
    weight[3, 1] = -100.0
    fill(program, "down.weight", weight)
    choose(program, "choose-masks{score=wanda sparsity=0.75}")
    wanted = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]).bool().repeat(8, 1)
    wanted[3] = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]).bool()
    assert torch.equal(mask_of(program, "down.weight"), wanted)


def test_calibration_sums_what_flows_and_skips_padding(traced, build, text):
    program = traced("llama")
    model = build("llama")
    seen = {}
    inner = model.model.layers[1].mlp.down_proj
    hook = inner.register_forward_hook(lambda m, args, out: seen.update(x=args[0]))
    batch = text.batch([0, 1, 2])
    batch["attention_mask"][1, -4:] = 0
    with torch.no_grad():
        model(**{k: v for k, v in batch.items() if k != "labels"})
    hook.remove()

    class Once:
        length = 12

        def __len__(self):
            return 3

        def batch(self, indices):
            return {key: value[list(indices)] for key, value in batch.items()}

    choose(program, "insert-probes{gram=true} | calibrate{samples=3 batch=2}", Once())
    x = seen["x"][batch["attention_mask"].bool()]
    path = "model.layers.1.mlp.down_proj.weight_probe_"
    assert int(program.tensor(path + "count")) == 32
    rows = [r[m] for r, m in zip(seen["x"], batch["attention_mask"].bool(), strict=True)]
    for kind, wanted in (
        ("mean", x.mean(0)),
        ("scatter", (x - x.mean(0)).square().sum(0)),
        ("level", sum(row.abs().mean(0).square() for row in rows)),
        ("gram", x.T @ x),
    ):
        assert torch.allclose(program.tensor(path + kind), wanted, rtol=1e-4, atol=1e-4), kind


def test_flattened_inputs_are_told_apart_by_sequence(traced, text):
    """A linear written as a product of matrices sees all tokens of a batch in one list."""
    program, other = traced("gpt2"), traced("gpt2")
    choose(program, "insert-probes | calibrate{samples=6 batch=3}", text)
    choose(other, "insert-probes | calibrate{samples=6 batch=1}", text)
    path = "transformer.h.1.mlp.c_proj.weight_probe_level"
    assert torch.allclose(program.tensor(path), other.tensor(path), rtol=1e-4)


def test_channels_go_by_the_sum_over_all_their_weights(traced):
    program = traced("mlp")
    for path in ("up.weight", "down.weight"):
        fill(program, path, torch.full_like(program.tensor(path), 0.1))
    with torch.no_grad():
        program.tensor("up.weight")[2] = 1.0
        program.tensor("down.weight")[:, 7] = -1.0
        program.tensor("up.weight")[9, 0] = 0.3
    choose(program, "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.75}")
    kept = mask_of(program, "down.weight", "channels").nonzero().flatten().tolist()
    assert kept == [2, 7, 9]


def test_multiple_rounds_the_number_kept_up(traced):
    program = choose(
        traced("mlp"),
        "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5 multiple=4}",
    )
    assert int(mask_of(program, "down.weight", "channels").sum()) == 8


def heads_of(traced, options):
    """Masks of the four query heads (two KV groups) of both layers; head 1 and 2 the strong ones."""
    program = traced("llama")
    for layer in (0, 1):
        path = f"model.layers.{layer}.self_attn."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            fill(
                program,
                f"{path}{name}.weight",
                torch.full_like(program.tensor(f"{path}{name}.weight"), 0.1),
            )
        for head, factor in ((1, 5.0), (2, 3.0 + layer)):
            with torch.no_grad():
                program.tensor(f"{path}q_proj.weight")[16 * head : 16 * head + 16] *= factor
    choose(program, f"insert-masks{{of=heads}} | choose-masks{{of=heads {options}}}")
    masks = [m for m in group_masks(program) if m.kind == "heads"]
    return program, [program.tensor(m.path).tolist() for m in masks]


def test_rule_groups_takes_whole_kv_groups(traced):
    _, masks = heads_of(traced, "sparsity=0.5")
    assert masks == [[True, True, False, False]] * 2


def test_rule_inside_takes_the_same_number_from_every_kv_group(traced):
    _, masks = heads_of(traced, "sparsity=0.5 rule=inside")
    assert masks == [[False, True, True, False]] * 2


def test_heads_without_groups_are_free_under_both_rules(traced):
    for rule in ("groups", "inside"):
        program = traced("block")
        with torch.no_grad():
            for name, factor in (("query", 4.0), ("value", 4.0)):
                program.tensor(f"{name}.weight")[4:8] *= factor
                program.tensor(f"{name}.weight")[12:] *= factor
        options = f"{{of=heads sparsity=0.5 rule={rule}}}"
        choose(program, f"insert-masks{{of=heads}} | choose-masks{options}")
        assert mask_of(program, "out.weight", "heads").tolist() == [False, True, False, True]


def test_global_scope_may_give_every_layer_another_number(traced):
    program = traced("opt")
    with torch.no_grad():
        for path, value in program.tensors():
            if ".layers.0." in path and value.dim() == 2:
                value *= 20
    choose(
        program, "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.4 scope=global}"
    )
    kept = [int(program.tensor(m.path).sum()) for m in group_masks(program)]
    assert kept == [96, 192 - 76 - 96]


def test_taylor_of_a_mask_is_the_slope_of_the_loss_by_the_mask(traced, tokens):
    program = choose(traced("block"), "insert-masks{of=heads,channels}")
    loss_of, batch = TaskLoss(program), tokens.batch([4])
    for kind, path, width in (("heads", "out.weight", 4), ("channels", "down.weight", 1)):
        chosen = sites(analyse(program), group_masks(program), kind)
        found = mask_derivatives(program, chosen, tokens, [4], 1)[f"{path}_{kind}_mask"]
        weight = program.tensor(path).detach().clone()
        slopes = []
        for index in range(found.numel()):
            losses = []
            for step in (1e-2, -1e-2):
                changed = weight.clone()
                changed[:, width * index : width * (index + 1)] *= 1 + step
                fill(program, path, changed)
                losses.append(float(loss_of(program.run(batch), batch)))
            slopes.append((losses[0] - losses[1]) / 2e-2)
        fill(program, path, weight)
        assert torch.allclose(found, torch.tensor(slopes).abs(), rtol=0.02, atol=2e-4), kind


def test_taylor_of_groups_is_a_mean_over_batches(traced, tokens):
    program = choose(traced("block"), "insert-masks{of=heads}")
    chosen = sites(analyse(program), group_masks(program), "heads")
    one, two, both = (
        mask_derivatives(program, chosen, tokens, indices, 1)["out.weight_heads_mask"]
        for indices in ([1], [2], [1, 2])
    )
    assert torch.allclose(both, (one + two) / 2, rtol=1e-4)


def test_gradients_are_those_of_the_model(build, traced, text):
    model, program = build("gpt2"), traced("gpt2")
    found = weight_gradients(program, text, [0, 1, 2, 3], 2)
    for indices in ([0, 1], [2, 3]):
        (model(**text.batch(indices)).loss / 2).backward()
    named = dict(model.named_parameters(remove_duplicate=False))
    for path, value in found.items():
        assert torch.allclose(value, named[path].grad, rtol=1e-3, atol=1e-5), path


def layer_errors(program, dense):
    """||X (W - W')^T||^2 of every masked linear, from the Gram matrices of its probe."""
    errors = []
    for view in linears(program):
        gram = f"{view.weight}_probe_gram"
        if view.mask and program.has(gram):
            new = program.tensor(view.weight) * program.tensor(view.mask)
            lost = out_in(view, (dense.tensor(view.weight) - new).detach())
            errors.append(float((lost @ program.tensor(gram) @ lost.T).trace()))
    return errors


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sparsegpt_loses_less_output_than_magnitude(family, traced, text):
    start = "insert-probes{gram=true} | calibrate{samples=32} | insert-masks | "
    found = {}
    for score in ("magnitude", "sparsegpt"):
        program = choose(traced(family), start + f"choose-masks{{score={score} pattern=2:4}}", text)
        found[score] = layer_errors(program, traced(family))
    assert len(found["magnitude"]) >= 4
    for better, worse in zip(found["sparsegpt"], found["magnitude"], strict=True):
        assert better < 0.8 * worse


def test_targets_without_a_mask_are_refused(traced):
    with pytest.raises(OptionError) as caught:
        choose(traced("mlp"), "insert-masks{targets=up} | choose-masks{targets=down sparsity=0.5}")
    assert str(caught.value).endswith(
        ", no target has a mask; widen the targets, or those of insert-masks (an output head has to be named)"
    )


def test_choosing_again_keeps_what_went_gone(traced):
    """A masked weight enters the program as zero, and is scored as such."""
    program = choose(traced("mlp"), "insert-masks | choose-masks{sparsity=0.25}")
    text, first = to_text(program), mask_of(program, "up.weight").clone()
    choose(program, "choose-masks{sparsity=0.5}")
    second = mask_of(program, "up.weight")
    assert zeros(first) == 24
    assert zeros(second) == 48
    assert bool((first | ~second).all())
    assert to_text(program) == text
