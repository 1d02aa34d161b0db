"""Experts that are linears of their own: clusters of planted copies are found, merged and stored once."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from exporters.onnx import Onnx
from sparsify.data.sequences import TextData
from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.feed_forward import feed_forwards
from sparsify.ir.axes.separate_routers import separate_routers
from sparsify.ir.features.merged_experts import merged_experts
from sparsify.ir.run.values import Values
from sparsify.ir.storage.folder import load, save
from sparsify.ir.tensor_names import route_probe
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.types import propagate
from sparsify.ir.verify import verify
from sparsify.tensors import clusters as pure
from sparsify.tensors.precision import relative_difference

PLANTED = [0, 1, 2, 0, 1, 2, 1, 0]
CLUSTERED = "insert-probes{of=routers} | calibrate{samples=16} | choose-clusters{experts=3}"
SHARED = f"{CLUSTERED} | remove-probes | merge-experts"
DATA = TextData(torch.randint(0, 40, (256,), generator=torch.Generator().manual_seed(5)), 16)
ROUTER = "blocks.0.router.weight"


class Gated(nn.Module):
    """`c(silu(a(x)) * b(x))`, a bias in two of the three."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 24), nn.Linear(16, 24, bias=False)
        self.c = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(silu(self.a(x)) * self.b(x))

    def permute(self, order: Tensor) -> None:
        for value in (self.a.weight, self.a.bias, self.b.weight):
            value.copy_(value[order])
        self.c.weight.copy_(self.c.weight[:, order])


class Plain(nn.Module):
    """`b(gelu(a(x)))`."""

    def __init__(self, hidden: int = 24, activation=gelu) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, hidden), nn.Linear(hidden, 16, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.activation(self.a(x)))

    def permute(self, order: Tensor) -> None:
        for value in (self.a.weight, self.a.bias):
            value.copy_(value[order])
        self.b.weight.copy_(self.b.weight[:, order])


class Block(nn.Module):
    """Every expert is computed; two have a gate. `form` says how the gates are made, read and summed."""

    def __init__(self, experts, form: str) -> None:
        super().__init__()
        self.router = nn.Linear(16, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.form = form

    def gates(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        if self.form == "stack":
            values, numbers = scores.topk(2, -1)
            values = values.softmax(-1)
        else:
            scores = scores.softmax(-1, dtype=torch.float64 if self.form == "flat" else None)
            values, numbers = scores.topk(2, -1)
            values = values / values.sum(-1, keepdim=True)
        if self.form == "masked":
            return scores * (scores >= values[..., -1:])
        return torch.zeros_like(scores).scatter(-1, numbers, values).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, 16) if self.form == "flat" else x
        g, pairs = self.gates(x), list(enumerate(self.experts))
        if self.form == "flat":
            return sum(g[:, e, None] * m(x) for e, m in pairs).reshape(shape)
        if self.form == "stack":
            return torch.stack([m(x) * g[..., e].unsqueeze(-1) for e, m in pairs]).sum(0)
        if self.form == "tree":
            parts = [g[..., e, None] * m(x) for e, m in pairs]
            while len(parts) > 1:
                parts = [one + two for one, two in zip(parts[::2], parts[1::2], strict=True)]
            return parts[0]
        if self.form == "two-sums":
            one, two = (sum(g[..., e : e + 1] * m(x) for e, m in pairs[i::2]) for i in range(2))
            return one + 2 * two
        if self.form == "chained":
            for e, m in pairs:
                x = x + g[..., e : e + 1] * m(x)
            return x
        return sum(g[..., e : e + 1] * m(x) for e, m in pairs)


class Model(nn.Module):
    def __init__(self, make=Gated, form: str = "slices", layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.blocks = nn.ModuleList(Block([make() for _ in PLANTED], form) for _ in range(layers))
        self.head = nn.Linear(16, 11, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def program_of(module, dtype=torch.float64):
    ids = torch.arange(10).reshape(2, 5)
    inputs = {"input_ids": {0: "batch", 1: "length"}}
    program = trace(module.eval(), {"input_ids": ids}, inputs)
    for path, value in list(program.module.named_parameters()):
        program.put(path, value.detach().to(dtype), trainable=True)
    propagate(program)
    return program


@functools.cache
def planted(make=Gated, form="slices", layers=1, dtype=torch.float64, copies=True):
    """Eight experts that are three, their neurons in other orders, their rows of the router alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = Model(make, form, layers)
        for block in model.blocks:
            block.router.weight.copy_(
                torch.randn(3, 16)[PLANTED] + 0.1 * torch.randn(len(PLANTED), 16)
            )
            for expert, group in zip(block.experts, PLANTED, strict=True):
                if copies:
                    expert.load_state_dict(block.experts[group].state_dict())
            for expert in block.experts:
                expert.permute(torch.randperm(24))
    return program_of(model, dtype)


def run(program, pipeline):
    return parse(pipeline).run(program.clone(), Context(data=DATA))


def moved(one, two):
    return relative_difference(one.run()[0], two.run()[0])


@pytest.mark.parametrize("form", ["slices", "stack", "tree"])
@pytest.mark.parametrize("make", [Gated, Plain])
def test_copies_are_merged_without_a_trace(make, form):
    program = planted(make, form)
    clustered = run(program, CLUSTERED)
    assert clustered.plan["clusters"] == {ROUTER: PLANTED}
    merged = run(clustered, "remove-probes | merge-experts")
    assert moved(program, merged) <= 1e-12
    experts = {path.split(".")[3] for path, _ in merged.tensors() if ".experts." in path}
    assert experts == {"0", "1", "2"}
    assert merged.tensor(ROUTER).shape == (8, 16)
    assert [item.count for item in merged_experts(merged)] == [3]
    one = [value for path, value in program.tensors() if ".experts.0." in path]
    before, after = count(program), count(merged)
    assert after.parameters == before.parameters - 5 * sum(value.numel() for value in one)
    tokens = before.batch * before.length
    matrices = sum(value.numel() for value in one if value.dim() == 2)
    assert after.multiply_adds == before.multiply_adds - 5 * tokens * matrices


def test_rows_of_tokens_and_gates_of_another_type():
    program = planted(form="flat", dtype=torch.float32)
    (router,) = separate_routers(program)
    assert router.mixed is not router.gates
    assert moved(program, run(program, SHARED)) <= 1e-6


def test_probes_see_every_token():
    seen = run(planted(), "insert-probes{of=routers} | calibrate{samples=16}")
    (router,) = separate_routers(seen)
    scores = Values(seen, [router.scores]).of(DATA.batch(range(16)))[router.scores].flatten(0, 1)
    count_, hits, gram = (seen.tensor(route_probe(ROUTER, n)) for n in ("count", "hits", "gram"))
    assert int(count_) == 256
    assert torch.equal(hits, scores.topk(2).indices.flatten().bincount(minlength=8))
    rows = pure.centred(scores)
    assert torch.allclose(gram.double(), rows.T @ rows, rtol=1e-4)


def test_controls(monkeypatch):
    """Without alignment, or where the experts are others, merging is felt."""
    program = planted()
    assert moved(planted(copies=False), run(planted(copies=False), SHARED)) > 0.05
    monkeypatch.setattr(pure, "aligned", lambda reference, neurons: torch.arange(len(neurons)))
    assert moved(program, run(program, SHARED)) > 0.05


def test_two_layers_and_targets():
    program = planted(layers=2)
    merged = run(program, SHARED)
    assert [item.count for item in merged_experts(merged)] == [3, 3]
    assert moved(program, merged) <= 1e-12
    steps = SHARED.replace("experts=3", "experts=3 targets=blocks.1.router")
    one = run(program, steps)
    assert [item.path.split(".")[1] for item in merged_experts(one)] == ["1"]
    together = run(program, SHARED.replace("experts=3", "experts=3 scope=global"))
    assert moved(program, together) <= 1e-12


@pytest.mark.parametrize("clusters", [1, 8])
def test_ends(clusters):
    program = planted(copies=False)
    clustered = run(program, CLUSTERED.replace("=3", f"={clusters}") + " | remove-probes")
    merged = run(clustered, "merge-experts")
    assert moved(clustered, merged) <= 1e-12
    assert moved(program, merged) <= 1e-12 or clusters == 1


@pytest.mark.parametrize("form", ["slices", "stack"])
def test_stored_and_exported(form, tmp_path):
    merged = run(planted(form=form, dtype=torch.float32), SHARED)
    again = load(save(merged, tmp_path / "p"))
    verify(again)
    assert to_text(again) == to_text(merged)
    assert torch.equal(again.run()[0], merged.run()[0])
    # What is written is read back and held against the program.
    write_checked(Onnx(), merged, tmp_path)


def test_what_was_merged_is_trained_or_refused():
    program = planted()
    clustered = run(program, CLUSTERED + " | remove-probes")
    with torch.no_grad():
        clustered.tensor("blocks.0.experts.3.c.bias").add_(1)
    with pytest.raises(
        OptionError, match=r"experts 0, 3, 7 of @.*0\.c\.bias are no longer the same"
    ):
        run(clustered, "merge-experts")
    clustered.plan["clusters"][ROUTER] = [0, 1]
    with pytest.raises(OptionError, match="chosen among 2 experts, and it has 8"):
        run(clustered, "merge-experts")


def model(make=Gated, form="slices"):
    return Model(make, form)


def other_shapes():
    made = model(Plain)
    made.blocks[0].experts[5] = Plain(hidden=32)
    return made


def other_ops():
    made = model(Plain)
    made.blocks[0].experts[5] = Plain(activation=silu)
    return made


def tied():
    made = model()
    made.blocks[0].experts[5].c.weight = made.blocks[0].experts[4].c.weight
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (other_shapes(), f"@{ROUTER} cannot be read: linear_.* is not made as linear_.* is"),
        (other_ops(), f"@{ROUTER} cannot be read: linear_.* is not made as linear_.* is"),
        (tied(), "follows from another expert|is read elsewhere too"),
        (model(form="chained"), "follows from another expert"),
        (model(form="two-sums"), "do not go into one sum"),
        (model(form="masked"), "the program has no prunable experts"),
        (model(lambda: nn.Linear(16, 16)), "no axes of neurons that can be told"),
    ],
    ids=["shapes", "ops", "tied", "chained", "two-sums", "masked", "one-matrix"],
)
def test_refusals(made, said):
    with pytest.raises(OptionError, match=said):
        run(program_of(made), SHARED)


def test_no_rows_of_the_router_go():
    program = planted()
    (step,) = parse("choose-clusters{experts=3 gates=sliced}").passes
    with pytest.raises(
        OptionError, match=f"@{ROUTER} are linears of their own.*; use gates=shared"
    ):
        step.check(program)
    with pytest.raises(OptionError, match=f"@{ROUTER} are linears of their own, .*; merge them"):
        run(program, "insert-masks{of=experts}")
    with pytest.raises(PipelineError, match="put fold-masks before it"):
        run(program, "insert-masks{targets=*.experts.*} | " + CLUSTERED)


def test_they_are_no_feed_forward_blocks():
    assert feed_forwards(planted()) == []
