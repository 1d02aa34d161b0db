"""UNCURL: experts of planted groups are found, aligned, merged and stored once, with negative controls.

Numbers U1 to U7 are those of the acceptance list: d=32, m=48, E=16 experts of 4 groups, top-2, 512 tokens.
"""

import functools
import sys

import pytest
import torch
import transformers
from torch import fx

from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError, SparsifyError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.expert_mask import expert_masks
from sparsify.ir.run.values import Values
from sparsify.ir.tensor_names import route_probe
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.types import propagate
from sparsify.ir.views.router import numbers_of
from sparsify.recipes import recipe
from sparsify.tensors import clusters as pure
from tests.ir.axes.families import traced as family_traced

ROUTER = "model.layers.0.mlp.gate.weight"
UP, DOWN = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
PLANTED = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
OBSERVED = "insert-probes{of=routers} | calibrate{samples=32}"
SHARED = f"{OBSERVED} | choose-clusters{{experts=4}} | remove-probes | merge-experts"
DATA = TextData(torch.randint(0, 60, (512,), generator=torch.Generator().manual_seed(5)), 16)


@functools.cache
def traced(chosen=2, dtype=torch.float64):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 60}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(
        num_local_experts=16, num_experts_per_tok=chosen, **sizes, **heads
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config)
        for value in model.parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, 0, 0.3)
    program = trace(model.eval())
    for path, value in list(program.module.named_parameters()):
        program.put(path, value.to(dtype), trainable=True)
    propagate(program)
    return program


def planted(noise=0.0, permuted=False, dtype=torch.float64, seed=0):
    """16 experts that are 4, copied with noise and in another order of neurons; routers rows alike."""
    program = traced(dtype=dtype).clone()
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        up, down = program.tensor(UP), program.tensor(DOWN)
        rows = draw(4, 32) + 0
        program.tensor(ROUTER).copy_(rows[PLANTED] + 0.15 * draw(16, 32))
        up.copy_(up[[4 * g for g in PLANTED]])
        down.copy_(down[[4 * g for g in PLANTED]])
        for value in (up, down):
            value.add_(noise * value.std() * draw(value.shape).to(dtype))
        for expert in range(16) if permuted else ():
            order = torch.randperm(48, generator=torch.Generator().manual_seed(expert))
            up[expert] = up[expert].reshape(2, 48, 32)[:, order].reshape(96, 32)
            down[expert] = down[expert][:, order]
    return program


def run(program, pipeline, seed=0):
    return parse(pipeline).run(program.clone(), Context(data=DATA, seed=seed))


def mixed(program):
    """What the experts add to the stream, on all 512 tokens."""
    adds = program.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    node = [n for n in adds if all(isinstance(arg, fx.Node) for arg in n.args)][-1].args[1]
    return Values(program, [node]).of(DATA.batch(range(32)))[node]


def moved(one, other):
    """The relative difference of what experts add."""
    wanted = mixed(one)
    return float((mixed(other) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("seed", range(5))
def test_u1_planted_groups_are_recovered(seed):
    program = run(planted(seed=seed), f"{OBSERVED} | choose-clusters{{experts=4}}", seed=seed)
    assert program.plan["clusters"] == {ROUTER: PLANTED}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("hits", [None, "arbitrary"])
def test_u2_the_same_experts_are_shared_exactly(dtype, most, hits):
    program = planted(dtype=dtype)
    seen = run(program, OBSERVED)
    if hits:
        seen.tensor(route_probe(ROUTER, "hits")).copy_(torch.arange(16) ** 2)
    shared = run(seen, "choose-clusters{experts=4} | remove-probes | merge-experts")
    assert shared.tensor(UP).shape == (4, 96, 32)
    assert shared.tensor(ROUTER).shape == (16, 32)
    assert float((mixed(shared) - mixed(program)).abs().max()) <= most


def test_u3_sliced_rows_of_the_router_change_the_function():
    program = planted()
    steps = f"insert-masks{{of=experts}} | {OBSERVED} | choose-clusters{{experts=4 gates=sliced}}"
    sliced = run(program, f"{steps} | remove-probes | prune-experts")
    assert sliced.tensor(UP).shape == (4, 96, 32)
    assert sliced.tensor(ROUTER).shape == (4, 32)
    assert moved(program, sliced) > 0.1
    masked = run(program, steps)
    hits = masked.tensor(route_probe(ROUTER, "hits"))
    (mask,) = expert_masks(masked)
    kept = masked.tensor(mask.path).nonzero().flatten().tolist()
    assert kept == [max(range(4 * g, 4 * g + 4), key=lambda e: int(hits[e])) for g in range(4)]
    first = run(program, steps.replace("experts=4", "sparsity=0.75 reference=first"))
    assert first.tensor(mask.path).nonzero().flatten().tolist() == [0, 4, 8, 12]


def test_u4_neurons_are_aligned_before_they_are_merged(monkeypatch):
    program = planted(permuted=True)
    assert moved(planted(), program) <= 1e-12
    found = moved(program, run(program, SHARED))
    monkeypatch.setattr(pure, "aligned", lambda reference, neurons: torch.arange(len(neurons)))
    control = moved(program, run(program, SHARED))
    assert found <= 1e-10
    assert control > 0.7


@pytest.mark.parametrize("permuted", [False, True])
def test_u5_merging_loses_less_than_leaving_out(permuted, monkeypatch):
    program = planted(noise=0.2, permuted=permuted)
    seen = run(program, OBSERVED)
    merged = moved(program, run(program, SHARED))
    core = pure.cores(PLANTED, seen.tensor(route_probe(ROUTER, "hits")))
    kept = program.clone()
    with torch.no_grad():
        for path in (UP, DOWN):
            kept.tensor(path).copy_(kept.tensor(path)[[core[g] for g in PLANTED]])
    frequent = run(seen, "insert-masks{of=experts}")
    (mask,) = expert_masks(frequent)
    with torch.no_grad():
        most = frequent.tensor(route_probe(ROUTER, "hits")).topk(4).indices
        frequent.tensor(mask.path).fill_(False)[most] = True
    shuffled = [PLANTED[i] for i in torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    monkeypatch.setattr(pure, "cluster", lambda *_: pure.renumbered(shuffled))
    control = moved(program, run(program, SHARED))
    assert merged < moved(program, kept) < min(moved(program, frequent), control)
    assert merged < 0.3


def test_u6_as_many_clusters_as_experts_are_no_change():
    program = planted(noise=0.2)
    same = run(program, f"{OBSERVED} | choose-clusters{{experts=16}} | remove-probes")
    assert all(torch.equal(value, same.tensor(path)) for path, value in program.tensors())
    assert moved(program, run(same, "merge-experts")) == 0


@pytest.mark.parametrize("count", [1, 4, 8])
def test_u6_parameters(count):
    program = planted()
    merged = run(program, SHARED.replace("experts=4", f"experts={count}"))
    before, after = (sum(p.numel() for p in x.module.parameters()) for x in (program, merged))
    assert after == before - 3 * 32 * 48 * (16 - count)


def test_u6_one_cluster_of_top_one_is_a_dense_block():
    program = traced(chosen=1).clone()
    merged = run(program, SHARED.replace("experts=4", "experts=1"))
    product = next(n for n in merged.graph.nodes if "grouped_mm" in str(n.target))
    (rows,) = (n for n in product.args[0].all_input_nodes if n.meta["val"].dim() == 2)
    x = Values(merged, [rows]).of(DATA.batch(range(32)))[rows]
    gate, up = (x @ merged.tensor(UP)[0].T).chunk(2, -1)
    dense = (torch.nn.functional.silu(gate) * up) @ merged.tensor(DOWN)[0].T
    assert torch.allclose(mixed(merged).flatten(0, -2), dense, atol=1e-12)


def test_u7_counts_and_means():
    program = planted(noise=0.3)
    seen = run(program, OBSERVED)
    hits = seen.tensor(route_probe(ROUTER, "hits"))
    assert int(hits.sum()) == 512 * 2
    assert int(seen.tensor(route_probe(ROUTER, "count"))) == 512
    merged = run(seen, "choose-clusters{experts=4}")
    for path in (UP, DOWN):
        apart = program.tensor(path).unflatten(0, (4, 4))
        found = merged.tensor(path).unflatten(0, (4, 4))
        assert (found == found[:, :1]).all()
        slack = 1e-12
        assert (found[:, 0] >= apart.amin(1) - slack).all()
        assert (found[:, 0] <= apart.amax(1) + slack).all()
    wanted = (hits[:4, None, None] * program.tensor(UP)[:4]).sum(0) / hits[:4].sum()
    assert torch.allclose(merged.tensor(UP)[0], wanted)


def test_u7_experts_that_nobody_used():
    seen = run(planted(noise=0.3), OBSERVED)
    seen.tensor(route_probe(ROUTER, "hits"))[:4] = 0
    plain = seen.tensor(UP)[:4].mean(0)
    merged = run(seen, "choose-clusters{experts=4}")
    assert torch.allclose(merged.tensor(UP)[0], plain)
    assert all(value.isfinite().all() for _, value in merged.tensors())


def test_probes_of_routers_see_logits_and_choices():
    """Against the router itself; masked experts count as the mean, and the text comes back."""
    program = family_traced("mixtral")
    text = to_text(program)
    seen = run(program, OBSERVED)
    router = analyse(seen).routers[1]
    names = [route_probe(router.weight, name) for name in ("count", "hits", "gram")]
    (numbers,) = numbers_of(router.node)
    found = Values(seen, [router.scores, numbers]).of(DATA.batch(range(32)))
    logits = found[router.scores] - found[router.scores].mean(-1, keepdim=True)
    count, hits, gram = (seen.tensor(name) for name in names)
    assert int(count) == 512
    assert torch.equal(hits, found[numbers].flatten().bincount(minlength=6))
    assert torch.allclose(gram, logits.T @ logits, rtol=1e-4, atol=1e-3)
    masked = run(program, "insert-probes{of=linears,routers} | insert-masks{of=experts}")
    (first, _) = expert_masks(masked)
    masked.tensor(first.path)[2] = False
    masked = run(masked, "calibrate{samples=8}")
    gram, hits = (masked.tensor(route_probe(first.weight, name)) for name in ("gram", "hits"))
    assert gram.isfinite().all()
    assert not gram[2].any()
    assert int(hits[2]) == 0
    assert to_text(run(seen, "remove-probes")) == text


@pytest.mark.parametrize("name", ["uncurl", "uncurl-sliced"])
def test_recipes(name):
    program = family_traced("mixtral")
    made = run(program, recipe(name).text)
    sizes = {path: value.shape[0] for path, value in made.tensors() if ".experts." in path}
    assert set(sizes.values()) == {3}
    assert made.features == ({"merged-experts"} if name == "uncurl" else set())


def test_padding_is_not_counted():
    program = planted(dtype=torch.float32)
    ids = DATA.batch(range(4))["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 10:] = 0

    class Padded:
        def __len__(self):
            return 4

        def batch(self, indices):
            return {"input_ids": ids[list(indices)], "attention_mask": mask[list(indices)]}

    seen = parse("insert-probes{of=routers} | calibrate{samples=4}").run(
        program, Context(data=Padded())
    )
    assert int(seen.tensor(route_probe(ROUTER, "hits")).sum()) == 2 * int(mask.sum())


def test_one_number_for_all_layers():
    steps = f"{OBSERVED} | choose-clusters{{experts=3 scope=global}} | remove-probes"
    program = run(family_traced("mixtral"), steps)
    counts = [max(found) + 1 for found in program.plan["clusters"].values()]
    assert sum(counts) == 6
    alike = family_traced("mixtral")
    with torch.no_grad():
        rows = alike.tensor("model.layers.0.mlp.gate.weight")
        rows.copy_(rows[[0, 0, 2, 2, 4, 4]])
        rows += 0.001 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    counts = [max(found) + 1 for found in run(alike, steps).plan["clusters"].values()]
    assert counts == [3, 3] or counts[0] < counts[1]
    more = run(alike, steps.replace("experts=3", "experts=4")).plan["clusters"].values()
    assert [max(found) + 1 for found in more] == [3, 5]


def test_refusals(traced):
    dense = traced("llama")
    for text in ("choose-clusters{experts=2}", "insert-probes{of=routers}"):
        with pytest.raises((OptionError, PipelineError), match=r"no prunable experts|needs"):
            run(dense, text)
    program = family_traced("mixtral")
    clusters = "choose-clusters{experts=3}"
    refused = {
        f"insert-probes | calibrate | {clusters}": r"has no probe; use insert-probes\{of=routers\}",
        f"{OBSERVED} | choose-clusters": "give experts=8",
        f"{OBSERVED} | choose-clusters{{experts=7}}": "would leave 7 of the 6 experts",
        f"{OBSERVED} | choose-clusters{{sparsity=1.0}}": "must be at least 0 and below 1",
        f"{OBSERVED} | insert-masks{{of=experts}} | choose-clusters{{experts=1 gates=sliced}}": (
            "would leave 1 of the 6 experts .*; leave 2 to 6"
        ),
        f"{OBSERVED} | choose-clusters{{experts=3 gates=sliced}}": "mask.experts",
        f"insert-masks{{of=channels}} | {OBSERVED} | {clusters}": "put prune-channels before it",
        f"{OBSERVED} | {clusters} | merge-experts": "put remove-probes before it",
        "merge-experts": "put choose-clusters before it",
    }
    for text, said in refused.items():
        with pytest.raises((OptionError, PipelineError), match=said):
            run(program, text)


def test_a_missing_package_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    program = family_traced("mixtral")
    with pytest.raises(SparsifyError, match=r"pass 3 of 3.*pip install 'sparsify-fx\[experts\]'"):
        run(program, f"{OBSERVED} | choose-clusters{{experts=3}}")


def test_experts_that_are_no_longer_the_same():
    steps = f"{OBSERVED} | choose-clusters{{experts=3}} | remove-probes"
    program = run(family_traced("mixtral"), steps)
    trained = program.clone()
    with torch.no_grad():
        trained.tensor(DOWN).add_(torch.rand(6, 1, 1))
    with pytest.raises(OptionError, match=r"of @.*down_proj are no longer the same"):
        run(trained, "merge-experts")
    fewer = "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.34} | prune-experts"
    with pytest.raises(OptionError, match=r"chosen among 6 experts, and it has 4"):
        run(program, f"{fewer} | merge-experts")
    seen = run(family_traced("mixtral"), "insert-probes{of=routers}")
    seen.features |= {"stats"}
    with pytest.raises(SparsifyError, match="saw no token; calibrate first"):
        run(seen, "choose-clusters{experts=3}")
