"""Every criterion against a loop over the layers of the model it stands for."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.group_mask import group_masks
from sparsify.select import groups
from sparsify.select.importance import Criterion, gather, importance

SAMPLES = 5
PROBED = f"insert-probes | calibrate{{samples={SAMPLES} batch=2}} | "
# Family, kind of group, module of layer 1 whose input carries it, the modules whose rows make it.
PLACES = {
    ("llama", "heads"): ("model.layers.1.self_attn.o_proj", ("q_proj", "k_proj", "v_proj")),
    ("llama", "channels"): ("model.layers.1.mlp.down_proj", ("gate_proj", "up_proj")),
    ("gpt2", "heads"): ("transformer.h.1.attn.c_proj", ("c_attn",)),
    ("gpt2", "channels"): ("transformer.h.1.mlp.c_proj", ("c_fc",)),
}
HEADS, WIDTH, CHANNELS = 4, 16, 96


class Few:
    """The first sequences of some data."""

    length = 12

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return SAMPLES

    def batch(self, indices):
        return self.data.batch(indices)


def rows_of(matrix, name, family, kind, number):
    """The rows `[k, in]` of a producing matrix `[out, in]` that belong to a group, and their share."""
    if kind == "channels":
        return matrix[number : number + 1], 1.0
    if name == "c_attn":
        parts = matrix.reshape(3, HEADS, WIDTH, -1)
        return parts[:, number].reshape(3 * WIDTH, -1), 1.0
    if name == "q_proj":
        return matrix[WIDTH * number : WIDTH * (number + 1)], 1.0
    group = number // 2  # two query heads share a key and a value head
    return matrix[WIDTH * group : WIDTH * (group + 1)], 0.5


def stored(module, family):
    weight = module.weight.detach()
    return weight.t() if family == "gpt2" else weight


def oracle(name, family, kind, build, data):
    """Scores of the heads or channels of layer 1, one after the other."""
    model = build(family)
    consumer, producers = PLACES[family, kind]
    parent = model.get_submodule(consumer.rpartition(".")[0])
    down = model.get_submodule(consumer)
    makers = [(n, parent.get_submodule(n)) for n in producers]
    seen, gradients = [], []
    hook = down.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    for sample in range(SAMPLES):
        model.zero_grad()
        model(**data.batch([sample])).loss.backward()
        gradients.append({id(m): stored_grad(m, family) for m in (down, *(m for _, m in makers))})
    hook.remove()
    x = torch.cat(seen)  # [sequences, tokens, in]
    size, width = (HEADS, WIDTH) if kind == "heads" else (CHANNELS, 1)
    result = []
    for number in range(size):
        inputs = range(width * number, width * (number + 1))
        parts = [
            (down, stored(down, family)[:, list(inputs)], 1.0, lambda g, i=inputs: g[:, list(i)])
        ]
        for maker_name, maker in makers:
            whole = stored(maker, family)
            own, share = rows_of(whole, maker_name, family, kind, number)
            cut = lambda g, n=maker_name, k=number: rows_of(g, n, family, kind, k)[0]  # noqa: E731
            parts.append((maker, own, share, cut))
        total = 0.0
        if name in ("magnitude", "first-order", "second-order", "mixed"):
            for module, weight, share, cut in parts:
                each = torch.stack([cut(g[id(module)]) for g in gradients])
                g, h = each.mean(0), each.square().mean(0)
                term = {
                    "magnitude": weight,
                    "first-order": weight * g,
                    "second-order": weight * weight * h,
                    "mixed": weight * g - 0.5 * weight * weight * h,
                }[name]
                total += share * float(term.abs().sum())
        else:
            for j in inputs:
                column = stored(down, family)[:, j]
                values = x[:, :, j]
                if name == "wanda":
                    total += float(column.abs().sum() * values.square().sum().sqrt())
                elif name == "activation":
                    total += float(sum(v.abs().mean() ** 2 for v in values))
                else:
                    one = float(values.var(correction=0) * column.square().sum())
                    total += one**2 if kind == "heads" else one
        result.append(total)
    return result


def stored_grad(module, family):
    return (module.weight.grad.t() if family == "gpt2" else module.weight.grad).clone()


@pytest.mark.parametrize(("family", "kind"), PLACES)
@pytest.mark.parametrize(
    "name",
    ["magnitude", "wanda", "activation", "fluctuation", "first-order", "second-order", "mixed"],
)
def test_every_criterion_is_its_formula(name, family, kind, traced, build, text):
    data = Few(text)
    program = parse(f"{PROBED}insert-masks{{of={kind}}}").run(traced(family), Context(data=data))
    found = groups.sites(analyse(program), group_masks(program), kind)
    site = next(s for s in found if ".1." in s.mask.path)
    by = Criterion(name, data=data, indices=range(SAMPLES), batch=2)
    evidence = gather(program, [site], by)
    scores = importance(program, site, by, evidence)
    wanted = torch.tensor(oracle(name, family, kind, build, data))
    assert torch.allclose(scores, wanted, rtol=2e-3, atol=1e-6 * float(wanted.max()))


def sizes_of(program):
    return {m.path: int(program.tensor(m.path).sum()) for m in group_masks(program)}


INSERT = "insert-masks{of=heads,channels} | "


@pytest.mark.parametrize(("rule", "options"), [("groups", ""), ("inside", " rule=inside")])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_target_shape_is_reached_in_every_layer(family, rule, options, traced):
    program = parse(
        f"{INSERT}choose-masks{{of=heads,channels to=shape{{heads=2 channels=40}}{options}}}"
    ).run(traced(family))
    found = sizes_of(program)
    assert sorted(found.values()) == [2, 2, 40, 40]
    pruned = parse("prune-heads | prune-channels").run(program)
    assert len(pruned.plan["axes"]) == 2


def test_a_shape_that_breaks_the_kv_groups_is_refused(traced):
    with pytest.raises(OptionError) as caught:
        parse(f"{INSERT}choose-masks{{of=heads to=shape{{heads=3}}}}").run(traced("llama"))
    assert str(caught.value).endswith(
        "heads=3 cannot be kept of the 4 heads at @model.layers.0.self_attn.o_proj.weight; "
        "it must be 1 to 4, in steps of 2 with rule=groups"
    )


def test_shapes_print_and_parse(traced):
    words = "choose-masks{of=heads,channels to=shape{heads=16 channels=5504}}"
    assert str(parse(words)) == words


def parameters(program):
    return sum(value.numel() for _, value in program.module.named_parameters())


@pytest.mark.parametrize("score", ["fluctuation", "magnitude", "first-order"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_one_budget_for_heads_and_channels_of_all_layers(family, score, traced, text):
    """The parameters that go are the asked part of those in heads and channels, and never more."""
    program = traced(family)
    with torch.no_grad():
        for path, value in program.tensors():
            if ".layers.0." in path and value.dim() == 2:
                value *= 1.3
    dense = parameters(program)
    words = f"choose-masks{{of=heads,channels scope=global score={score} sparsity=0.4 samples=4}}"
    parse(f"{PROBED}{INSERT}{words} | remove-probes").run(program, Context(data=text))
    kept = sizes_of(program)
    assert len(set(kept.values())) > 2
    found = [
        s
        for k in ("heads", "channels")
        for s in groups.sites(analyse(program), group_masks(program), k)
    ]
    total = sum(groups.unit_cost(program, s, "groups") * s.of.size / s.per_group for s in found)
    largest = max(groups.unit_cost(program, s, "groups") for s in found)
    pruned = parse("prune-heads | prune-channels").run(program)
    biases = sum(v.numel() for p, v in traced(family).tensors() if p.endswith("bias"))
    gone = dense - parameters(pruned)
    assert gone <= 0.4 * total + biases
    assert gone >= 0.4 * total - largest


def test_standardised_layers_are_ranked_by_what_stands_out_in_each(traced):
    """One layer a hundred times as large: raw scores strip the other one, standardised ones do not."""

    def kept(normalise):
        program = traced("opt")
        with torch.no_grad():
            for path, value in program.tensors():
                if ".layers.0." in path and value.dim() == 2:
                    value *= 100
        words = f"of=channels scope=global sparsity=0.5 normalise={normalise}"
        return list(
            sizes_of(
                parse(f"insert-masks{{of=channels}} | choose-masks{{{words}}}").run(program)
            ).values()
        )

    assert kept("none") == [96, 1]
    for normalise in ("standard", "mean"):
        first, second = kept(normalise)
        assert 30 < first < 66
        assert 95 <= first + second <= 97


def test_fluctuation_is_blind_to_what_never_changes(traced, tokens):
    """A channel that is large but constant goes: its mean can stand in for it."""
    program = traced("block")
    with torch.no_grad():
        program.tensor("up.weight")[5] = 0
        program.tensor("up.bias")[5] = 8.0
    steps = f"{PROBED}insert-masks{{of=channels}} | choose-masks{{of=channels sparsity=0.1 score="
    for score, kept in (("fluctuation", False), ("wanda", True)):
        clone = parse(f"{steps}{score}}}").run(program.clone(), Context(data=tokens))
        assert bool(clone.tensor("down.weight_channels_mask")[5]) == kept
