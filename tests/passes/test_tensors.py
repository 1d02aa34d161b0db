"""choose-tensors: what it touches, what it leaves alone, and what a search may say (TRAWL, T2, T5-T8)."""

import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsify.data.sequences import TensorData, TextData
from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import DataError, OptionError
from sparsify.ir.storage.folder import save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears, out_in
from sparsify.ir.views.targets import targeted
from sparsify.recipes.catalogue import recipe
from sparsify.select.stacks import joined, stacks
from sparsify.tensors.lowrank import best_rank, matrix_rank
from sparsify.tensors.precision import largest_difference
from sparsify.tensors.stacks import fit


def run(program, text, data=None, report=None, context=None):
    return parse(text).run(program, context or Context(data=data), report=report)


def weights(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


def changed(before, program):
    return {path for path, value in program.tensors() if not torch.equal(before[path], value)}


def every(program, kind, **options):
    return stacks(program, kind, targeted(program, ("*",), ()), **options)


@pytest.mark.parametrize("kind", ["ffn", "attention"])
def test_a_stack_comes_apart_as_it_was_put_together(kind, traced):
    program = traced("gpt2")
    before = weights(program)
    for stack in every(program, kind):
        tensor = stack.tensor(program)
        assert len(tensor) == {"ffn": 2, "attention": 4}[kind]
        for path, value in stack.changed(program, tensor).items():
            assert torch.equal(value, before[path])


class Turned(nn.Module):
    """The pair of a block, stored `[in, out]` or `[out, in]`."""

    def __init__(self, up, down, turned):
        super().__init__()
        self.turned = turned
        self.up = nn.Parameter(up.T.contiguous() if turned else up.clone())
        self.down = nn.Parameter(down.T.contiguous() if turned else down.clone())
        self.first, self.second = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        if self.turned:
            wide = torch.addmm(self.first, x, self.up)
            return x + torch.addmm(self.second, wide.relu(), self.down)
        wide = functional.linear(x, self.up, self.first)
        return x + functional.linear(wide.relu(), self.down, self.second)


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_the_layout_of_storage_does_not_matter(form):
    draw = torch.Generator().manual_seed(1)
    up, down = torch.randn(12, 8, generator=draw), torch.randn(8, 12, generator=draw)
    found = []
    for turned in (True, False):
        program = trace(Turned(up, down, turned), {"x": torch.ones(3, 8)}, {"x": {0: "batch"}})
        run(program, f"choose-tensors{{rank=3 form={form}}}")
        found.append([out_in(v, program.tensor(v.weight)).detach() for v in linears(program)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    joint = fit(torch.stack([up, down.T]), 3, form).slices
    torch.testing.assert_close(found[0][0], joint[0].float())
    torch.testing.assert_close(found[0][1], joint[1].T.float())


def test_the_whole_rank_changes_nothing(traced):
    program = traced("llama")
    before, outputs = weights(program), program.run()[0]
    run(
        program,
        "choose-tensors{rank=96} | choose-tensors{stack=one rank=64 targets=*q_proj,*o_proj}",
    )
    for path, value in weights(program).items():
        torch.testing.assert_close(value, before[path], rtol=0, atol=1e-6)
    assert largest_difference([outputs], [program.run()[0]]) <= 1e-5


def test_only_the_named_layer_changes(traced, tmp_path):
    program = traced("llama")
    before, text, counts = weights(program), to_text(program), count(program)
    size = [f.stat().st_size for f in sorted(save(program, tmp_path / "a").glob("*.safetensors"))]
    run(program, "choose-tensors{rank=5 layers=-1}")
    pair = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down")}
    assert changed(before, program) == pair
    assert (to_text(program), count(program)) == (text, counts)
    after = [f.stat().st_size for f in sorted(save(program, tmp_path / "b").glob("*.safetensors"))]
    # Beside the tensors stands the text of the pipeline.
    assert abs(sum(size) - sum(after)) < 200
    assert program.plan["stacks"] == [sorted(pair, reverse=True)]
    ranks = {path: matrix_rank(program.tensor(path), torch.float32) for path in pair}
    assert set(ranks.values()) == {5}


def test_one_linear_is_cut_to_its_largest_singular_values(traced):
    program = traced("llama")
    path = "model.layers.0.self_attn.v_proj.weight"
    a, b = best_rank(program.tensor(path).detach(), 7)
    before = weights(program)
    run(program, f"choose-tensors{{stack=one rank=7 targets={path}}}")
    assert changed(before, program) == {path}
    torch.testing.assert_close(program.tensor(path).detach(), b @ a, rtol=1e-5, atol=1e-6)


def test_keys_and_values_of_groups_do_not_fit(traced):
    program = traced("llama")
    with pytest.raises(OptionError) as caught:
        run(program, "choose-tensors{stack=attention rank=4}")
    assert str(caught.value) == (
        "pass 1 of 1, 'choose-tensors{stack=attention rank=4}', "
        "@model.layers.0.self_attn.k_proj.weight [32, 64] does not fit on "
        "@model.layers.0.self_attn.q_proj.weight [64, 64]: a stack has matrices of one shape (keys and "
        "values of grouped heads are smaller, a linear that makes queries, keys and values head by head "
        "is larger); leave it out with ignore"
    )
    before = weights(program)
    run(program, "choose-tensors{stack=attention rank=4 layers=0 ignore=*.k_proj,*.v_proj}")
    names = ("q_proj", "o_proj")
    assert changed(before, program) == {f"model.layers.0.self_attn.{n}.weight" for n in names}


def test_a_segment_has_a_layer(traced):
    with pytest.raises(OptionError, match="segment=0 must be 1 or more layers"):
        run(traced("llama"), "choose-tensors{rank=4 scope=segment segment=0}")


@pytest.mark.parametrize("scope", ["layer", "segment", "all"])
def test_scopes(scope, traced):
    program = traced("opt")
    found = joined(program, every(program, "attention"), scope, 2)
    assert sum(len(stack.slices) for stack in found) == 8
    assert [stack.number for stack in found] == {"layer": [0, 1]}.get(scope, [0])
    report = Report()
    run(program, f"choose-tensors{{stack=attention scope={scope} segment=2 rank=6}}", report=report)
    assert report.rows[0].places == len(found)
    assert len(program.plan["stacks"][0]) == len(found[0].slices)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("rank=4,8", "rank=4,8 must be one number, unless search=loss is to choose"),
        ("rank=97", "rank=97 does not fit the stack [2, 96, 64] of @{up}; it must be 1 to 96"),
        ("rank=0", "rank=0 does not fit the stack [2, 96, 64] of @{up}; it must be 1 to 96"),
        ("layers=2", "layers=2 is no stack: there are 2, 0 to 1, or -1 for the last"),
        ("stack=one scope=all", "stack=one takes each linear alone; leave scope=all out"),
        (
            "targets=*q_proj",
            "no two targets belong to a stack of stack=ffn; `sparsify-fx show MODEL --axes` lists the "
            "heads and channels of a program, and stack=one takes linears one by one",
        ),
    ],
)
def test_what_is_refused_before_anything_runs(options, sentence, traced):
    with pytest.raises(OptionError) as caught:
        parse(f"choose-tensors{{{options}}}").check(traced("llama"), Context())
    wanted = sentence.replace("{up}", "model.layers.0.mlp.up_proj.weight")
    assert str(caught.value).endswith(f"', {wanted}")


def test_what_stands_on_the_weights_comes_off_first(traced):
    with pytest.raises(Exception, match="put fold-masks before it"):
        run(traced("mlp"), "insert-masks | choose-tensors{rank=2}")
    one_kind = TensorData({"input_ids": torch.ones(1, 8, dtype=torch.long)})
    with pytest.raises(DataError, match="too few to be split"):
        run(traced("block"), "choose-tensors{rank=2 search=loss}", one_kind)


class Noisy(nn.Module):
    """A teacher of low rank in the first block alone, with noise on both."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.embed = nn.Embedding(40, 16)
        self.ups = nn.ModuleList(nn.Linear(16, 24, bias=False) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(24, 16, bias=False) for _ in range(2))
        self.head = nn.Linear(16, 40, bias=False)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5)
            a, b = (torch.linalg.qr(torch.randn(n, 3, generator=draw))[0] for n in (24, 16))
            clean = torch.einsum("jr,ar,br->jab", torch.tensor([[6.0, 6, 6], [6, -6, 6]]), a, b)
            self.ups[0].weight.copy_(clean[0])
            self.downs[0].weight.copy_(clean[1].T)

    def soil(self):
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for linear in (self.ups[0], self.downs[0]):
                noise = torch.randn(linear.weight.shape, generator=draw)
                linear.weight += 0.5 * noise * linear.weight.norm() / noise.norm()
        return self

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(functional.relu(up(x)))
        return self.head(x)


def _program(model):
    ids = torch.zeros(2, 6, dtype=torch.long)
    return trace(model, {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


@pytest.fixture(scope="module")
def taught():
    """A noisy model, and text that the clean one says."""
    clean, draw = _program(Noisy()), torch.Generator().manual_seed(4)
    ids = torch.randint(0, 40, (256, 1), generator=draw)
    for _ in range(11):
        odds = torch.softmax(3 * clean.run({"input_ids": ids})[0][:, -1], -1)
        ids = torch.cat([ids, torch.multinomial(odds, 1, generator=draw)], 1)
    return _program(Noisy().soil()), TextData(ids.flatten(), 12)


SEARCH = "choose-tensors{rank=2,3,6,12 search=%s samples=128 batch=64}"


def test_a_search_finds_the_noisy_layer_and_a_rank_below_the_noise(taught):
    program, data = taught[0].clone(), taught[1]
    context, report = Context(data=data), Report()
    before = weights(program)
    run(program, SEARCH % "loss", report=report, context=context)
    assert changed(before, program) == {"ups.0.weight", "downs.0.weight"}
    rows = context.figures["choose-tensors"]
    assert [(row["layer"], row["rank"]) for row in rows] == [
        (layer, rank) for layer in range(2) for rank in (2, 3, 6, 12)
    ]
    best = min(rows, key=lambda row: row["score"])
    assert best["layer"] == 0
    # Noise comes back above the rank of what it was put on, 3.
    above = [row["score"] for row in rows[1:4]]
    assert above == sorted(above)
    assert best["rank"] <= 3
    held = [row["held"] for row in rows if "held" in row]
    assert len(held) == 2
    assert best["held"] == min(held)
    note = report.rows[0].note
    assert note.startswith(f"layer 0 at rank {best['rank']}: perplexity ")
    median = torch.tensor(statistics.median(held)).exp()
    assert note.endswith(f" -> {float(median):.4g} held out")
    for path, value in program.tensors():
        if "1" in path:
            assert torch.equal(value, before[path])


def test_what_is_reported_is_no_part_of_what_chose(taught):
    """Other text in the second half moves the report and not the choice; in the first half both."""
    program, data = taught
    half = data.batch(range(128))["input_ids"]
    other = torch.randint(0, 40, half.shape, generator=torch.Generator().manual_seed(6))
    whole = data.batch(range(256))["input_ids"]
    found = []
    for ids in (whole, torch.cat([half, other]), torch.cat([other, whole[128:]])):
        context = Context(data=TextData(ids.flatten(), 12))
        run(program.clone(), SEARCH % "loss", context=context)
        found.append(context.figures["choose-tensors"])
    scores = [[row["score"] for row in rows] for rows in found]
    held = [[row.get("held") for row in rows] for rows in found]
    assert scores[0] == scores[1] != scores[2]
    assert held[0] != held[1]


def test_a_search_that_finds_nothing_leaves_every_bit(taught):
    program, data = taught[0].clone(), taught[1]
    before, report = weights(program), Report()
    run(program, "choose-tensors{rank=1 layers=1 search=loss samples=16}", data, report)
    assert changed(before, program) == set()
    assert report.rows[0].places == 0
    assert report.rows[0].note.startswith("no layer and rank lowered the perplexity ")
    assert "stacks" not in program.plan


def test_a_search_by_errors_is_the_same_twice(taught):
    rows = []
    for _ in range(2):
        context = Context(data=taught[1])
        run(taught[0].clone(), SEARCH % "errors", context=context)
        rows.append(context.figures["choose-tensors"])
    assert rows[0] == rows[1]
    assert all(
        row["score"] * 128 * 11 == pytest.approx(round(row["score"] * 128 * 11)) for row in rows[0]
    )


def test_the_recipe_searches(traced, text):
    assert recipe("trawl").text.startswith("choose-tensors{")
    parse(recipe("trawl").text.replace("rank=16,32,64,128", "rank=8,16")).check(
        traced("llama"), Context(data=text)
    )
