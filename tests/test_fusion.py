"""fuse: a base model and its siblings in one program, S1 to S8 of the reference."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, SparsifyError
from sparsify.fusion import Fusion, fuse, unfused
from sparsify.ir.features.experts import experts_beside
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears
from sparsify.ir.views.targets import targeted
from sparsify.tensors.siblings import added_parameters, branch


def sibling(base, seed, paths=None, scale=0.05):
    """The base with some of its linears moved, all by default."""
    made, draw = base.clone(), torch.Generator().manual_seed(seed)
    chosen = {view.weight for view in targeted(base, ("*",), ())} if paths is None else paths
    with torch.no_grad():
        for path in sorted(chosen):
            weight = made.tensor(path)
            weight += scale * torch.randn(weight.shape, generator=draw)
    return made


class Two(nn.Module):
    """Two linears, one with a bias, one without."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 10), nn.Linear(10, 7, bias=False)

    def forward(self, x):
        """Rows through both."""
        return self.down(self.up(x))


def small(seed=0):
    torch.manual_seed(seed)
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    return trace(Two().double(), {"x": x}, {"x": {0: "batch", 1: "length"}})


def outputs(program, x):
    return program.run({"x": x})[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_sibling_of_full_rank_is_that_sibling_and_folds(family, traced):
    """S1 and S8: no router, one adapter a linear; folded it is the base's graph with its weights."""
    base = traced(family)
    other = sibling(base, 1)
    made = fuse(base, [other], Fusion(rank=None))
    assert made.features == {"adapters"}
    assert torch.allclose(made.run()[0], other.run()[0], atol=1e-5)
    wanted = made.run()[0]
    folded = parse("fold-adapters").run(made, Context())
    assert to_text(folded) == to_text(base)
    assert torch.allclose(folded.run()[0], wanted, atol=1e-5)
    for path, value in other.tensors():
        assert torch.allclose(folded.tensor(path), value, atol=1e-5), path


def test_a_bias_goes_with_its_sibling():
    base = small()
    other = sibling(base, 1)
    with torch.no_grad():
        other.tensor("up.bias").add_(0.3)
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    made = fuse(base, [other], Fusion(rank=None))
    assert torch.allclose(outputs(made, x), outputs(other, x), atol=1e-12)
    two = fuse(base, [other, sibling(base, 2)], Fusion(rank=None, top=2))
    assert two.has("up.weight_experts_biases")


def test_every_row_is_one_siblings_and_the_nearer_ones():
    """S2, a linear alone: with top=1 the sibling with the larger `||R_i x||`, exactly."""
    base = small()
    others = [sibling(base, seed, {"up.weight"}) for seed in (1, 2)]
    made = fuse(base, others, Fusion(rank=None, gate=3))
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    weight, found, seen = base.tensor("up.weight"), outputs(made, x), set()
    routers = [branch(weight, one.tensor("up.weight"), None, 3).router for one in others]
    for row, y in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        best = max((0, 1), key=lambda i: float(linear(row, routers[i]).norm()))
        wanted = outputs(others[best], row[None, None])[0, 0]
        assert torch.allclose(y, wanted, atol=1e-12)
        seen.add(best)
    assert seen == {0, 1}


def test_siblings_that_are_alike_are_that_sibling():
    base = small()
    one = sibling(base, 1)
    made = fuse(base, [one, one.clone()], Fusion(rank=None, top=2))
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    assert torch.allclose(outputs(made, x), outputs(one, x), atol=1e-12)


def test_what_a_rank_loses_is_the_tail_of_the_spectrum():
    """S3: exact at the rank of the difference, and below it `sqrt(sum of the squares left out)`."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(20, 30, generator=draw, dtype=torch.float64)
    low = torch.randn(20, 6, generator=draw, dtype=torch.float64) @ torch.randn(
        6, 30, generator=draw, dtype=torch.float64
    )
    values, errors = torch.linalg.svdvals(low), []
    for rank in range(1, 8):
        found = branch(base, base + low, rank, 4)
        assert found.router.shape == (4, 30)
        error = float((found.b @ found.a - low).norm())
        assert error == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-12)
        errors.append(error)
    assert errors[5] < 4e-13
    assert all(after <= before for before, after in itertools.pairwise(errors[:6]))


def test_the_parameters_are_those_of_the_formula(traced):
    """S4: to the digit, of a traced model and of the shapes of a model of 7 billion."""
    shapes = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
    shapes += [(14336, 4096), (14336, 4096), (4096, 14336)]

    def grown(siblings, rank):
        return 32 * sum(added_parameters(*shape, siblings, rank, 8) for shape in shapes)

    assert grown(1, 8) == 30_932_992
    assert grown(3, 8) == 92_798_976
    assert grown(3, 512) == 4_056_416_256
    base = traced("llama")
    made = fuse(base, [sibling(base, seed) for seed in (1, 2, 3)], Fusion(rank=5, gate=2))
    count = [sum(p.numel() for p in program.module.parameters()) for program in (base, made)]
    linear_shapes = [tuple(base.tensor(view.weight).shape) for view in targeted(base, ("*",), ())]
    assert count[1] - count[0] == sum(added_parameters(*s, 3, 5, 2) for s in linear_shapes)


def tasks(seed, scrambled=0.0):
    """S5: two tasks on blocks of inputs of their own, a weak common block, heads by least squares."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    truth = rand(6, 40)
    common, blocks = slice(30, 40), (slice(0, 10), slice(10, 20))

    def data(task, count):
        x = torch.zeros(count, 40, dtype=torch.float64)
        x[:, common] = 0.5 * rand(count, 10)
        x[:, blocks[task]] = rand(count, 10)
        if scrambled:
            x[:, blocks[1 - task]] = scrambled * rand(count, 10)
        known = torch.zeros_like(x)
        known[:, common], known[:, blocks[task]] = x[:, common], x[:, blocks[task]]
        return x, (known @ truth.T).argmax(1)

    def fitted(x, y, start):
        weight = start.clone().requires_grad_(True)
        steps = torch.optim.Adam([weight], lr=0.05)
        for _ in range(200):
            steps.zero_grad()
            torch.nn.functional.cross_entropy(x @ weight.T, y).backward()
            steps.step()
        return weight.detach()

    trains, tests = ([data(task, count) for task in (0, 1)] for count in (600, 1000))
    everything = torch.cat([x for x, _ in trains]), torch.cat([y for _, y in trains])
    only = torch.zeros_like(everything[0])
    only[:, common] = everything[0][:, common]
    base = fitted(only, everything[1], torch.zeros(6, 40, dtype=torch.float64))
    own = [fitted(x, y, base) for x, y in trains]
    return base, own, tests


def routed(base, own, x, gate, rank):
    """Logits of rows by the branches of siblings, the one with the larger norm."""
    parts = [branch(base, one, rank, gate) for one in own]
    norms = torch.stack([linear(x, part.router).norm(dim=1) for part in parts], 1)
    best = norms.argmax(1)
    each = torch.stack([linear(linear(x, part.a), part.b) for part in parts], 1)
    return linear(x, base) + each[torch.arange(len(x)), best], best


def accuracies(seed, scrambled=0.0, gate=4, rank=5):
    base, own, tests = tasks(seed, scrambled)
    found = {"base": [], "average": [], "own": [], "fused": [], "routing": []}
    for task, (x, y) in enumerate(tests):
        fused, best = routed(base, own, x, gate, rank)
        rows = {"base": x @ base.T, "own": x @ own[task].T, "fused": fused}
        rows["average"] = x @ (sum(own) / 2).T
        for name, logits in rows.items():
            found[name].append(float((logits.argmax(1) == y).double().mean()))
        found["routing"].append(float((best == task).double().mean()))
    return {name: sum(values) / 2 for name, values in found.items()}


def over_seeds(**options):
    rows = [accuracies(seed, **options) for seed in range(4)]
    return {name: sum(row[name] for row in rows) / 4 for name in rows[0]}


def test_two_tasks_are_both_served():
    """S5: base < average < fused <= own, and more directions are better."""
    found = over_seeds()
    assert found["base"] < found["average"] < found["fused"] <= found["own"]
    assert found["fused"] >= 0.9 * found["own"]
    assert found["routing"] > 0.85
    sweep = [over_seeds(rank=rank)["fused"] for rank in (1, 3, 5)]
    assert sweep[0] < sweep[1] <= sweep[2] + 0.01


def test_energy_in_the_other_tasks_directions_misleads_the_router():
    """S6, what the method cannot do: it looks at how large an input is, not at whether that helps."""
    plain, misled = over_seeds(), over_seeds(scrambled=0.6)
    assert misled["routing"] < plain["routing"] - 0.08
    assert misled["fused"] - misled["average"] < plain["fused"] - plain["average"]


def test_linears_that_are_equal_stay_node_for_node(traced):
    """S7 and the trap of a sibling that left a linear alone: it is no branch of it."""
    base = traced("llama")
    paths = sorted(view.weight for view in targeted(base, ("*",), ()))
    others = [sibling(base, 1, paths[:3]), sibling(base, 2, paths[2:4])]
    made = fuse(base, others, Fusion(rank=4))
    assert {one.weight for one in experts_beside(made)} == {paths[2]}
    assert made.features == {"experts", "adapters"}
    assert not any(made.has(f"{path}_adapter_a") for path in paths[4:])
    same = fuse(base, [base.clone(), base.clone()])
    assert to_text(same) == to_text(base)
    assert same.features == base.features


@pytest.mark.parametrize("top", [1, 2])
def test_it_is_saved_exported_and_read_back(top, traced, tmp_path):
    base = traced("llama")
    made = fuse(base, [sibling(base, seed) for seed in (1, 2)], Fusion(rank=6, gate=2, top=top))
    save(made, tmp_path / "program")
    again = load(tmp_path / "program")
    assert torch.equal(again.run()[0], made.run()[0])
    assert again.log[-1] == f"fuse{{siblings=2 rank=6 gate=2 top={top}}}"
    paths = export(made, tmp_path / "exports", ["onnx", "onnx-decode"])
    assert set(paths) == {"onnx", "onnx-decode"}


def test_fused_programs_go_on(traced, text, tmp_path):
    """Heads and channels go, weights round to int4 beside the experts, and experts learn."""
    base = traced("llama")
    made = fuse(base, [sibling(base, seed) for seed in (1, 2)], Fusion(rank=4, gate=2))
    steps = (
        "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
        "prune-heads | prune-channels | train{steps=2 batch=2 lr=0.001 update=experts} | "
        "insert-quantizers{values=int4 group=32} | choose-scales | pack-dense"
    )
    smaller = parse(steps).run(made, Context(data=text))
    assert len(experts_beside(smaller)) == len(targeted(base, ("*",), ()))
    export(smaller, tmp_path, ["onnx-decode"])


def test_all_else_is_the_bases_or_the_mean(traced):
    base = traced("llama")
    others = [sibling(base, 1), sibling(base, 2)]
    path = "model.norm.weight"
    with torch.no_grad():
        others[0].tensor(path).add_(1.0)
    assert unfused(base, others) == [path]
    assert torch.equal(fuse(base, others).tensor(path), base.tensor(path))
    mean = fuse(base, others, Fusion(others="mean")).tensor(path)
    assert torch.allclose(mean, base.tensor(path) + 0.5)


def test_what_is_no_sibling(traced):
    base = traced("llama")
    with pytest.raises(
        SparsifyError, match=r"sibling 1 is none: 'model.embed_tokens.weight' is \["
    ):
        fuse(base, [traced("gemma")])
    other = sibling(base, 1)
    node = next(n for n in other.graph.nodes if "rsqrt" in str(n.target))
    node.target = torch.ops.aten.sqrt.default
    with pytest.raises(SparsifyError, match="computes something else with them"):
        fuse(base, [base.clone(), other])
    with pytest.raises(OptionError, match="there is no sibling to fuse"):
        fuse(base, [])
    with pytest.raises(OptionError, match="top=3 is more than the 2 siblings"):
        fuse(base, [base.clone(), base.clone()], Fusion(top=3))
    with pytest.raises(OptionError, match="rank=0 must be at least 1, a whole number"):
        Fusion(rank=0)
    with pytest.raises(OptionError, match=r"gate=1.5 must be at least 1, a whole number"):
        Fusion(gate=1.5)
    with pytest.raises(OptionError, match="others=max is neither base nor mean"):
        Fusion(others="max")


def test_adapters_under_masks_are_not_folded(traced):
    steps = "insert-masks | choose-masks{pattern=2:4} | insert-adapters{ratio=0.2} | fold-adapters"
    with pytest.raises(SparsifyError, match=r"cannot run while the program has \['mask.weights'\]"):
        parse(steps).run(traced("llama"), Context())


def test_the_base_stays_as_it_is(traced):
    base = traced("llama")
    before = {path: value.clone() for path, value in base.tensors()}
    text = to_text(base)
    fuse(base, [sibling(base, 1)], Fusion(others="mean"))
    assert to_text(base) == text
    assert all(torch.equal(value, before[path]) for path, value in base.tensors())
    assert len(linears(base)) == len({view.weight for view in linears(base)})
