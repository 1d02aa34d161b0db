"""Omission: gradients of the masked model, the dense model at rest, and a run as a pipeline."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.features.omission import omissions
from sparsify.ir.mode import set_training
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.train.omitting import Omitting
from sparsify.train.program_model import ProgramModel

SAT = (
    "insert-omission{{multiple=8{0}}} | train{{steps={1} batch=4 lr=0.003 schedule=lors{{{2}}}}} | "
    "remove-omission"
)
SMALL = {"vocab_size": 60, "num_hidden_layers": 2}
GROUPED = {
    **SMALL,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2():
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 64, "n_inner": 48, "n_layer": 2, "n_head": 4, "vocab_size": 60}
    return transformers.GPT2Config(**sizes, **drops, bos_token_id=1, eos_token_id=2)


# Grouped attention, the same with fused projections, and fused projections stored [in, out].
MODELS = {
    "grouped": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "fused": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**GROUPED, **IDS)),
    "transposed": lambda: transformers.GPT2LMHeadModel(gpt2()),
}


@pytest.fixture(scope="module")
def small():
    known = {}

    def make(name):
        if name not in known:
            torch.manual_seed(0)
            known[name] = trace(MODELS[name]())
        return known[name].clone()

    return make


def run(program, pipeline, data=None, seed=0, **options):
    context = Context(data=data, seed=seed, **options)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 60, (3, 7), generator=draw)


def gradients(program, ids):
    """Gradients of the mean loss; they are cleared."""
    model = ProgramModel(program)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {path: value.grad for path, value in program.module.named_parameters()}
    for value in program.module.parameters():
        value.grad = None
    return float(loss.detach()), found


def masked(program, kept, per_group):
    """The dense program with masks that hold the kept neurons, in graph order."""
    parse("insert-masks{of=heads,channels}").run(program)
    masks = group_masks(program)
    assert len(masks) == len(kept)
    for mask, index in zip(masks, kept.values(), strict=True):
        value = program.tensor(mask.path)
        value.zero_()
        width = per_group if mask.kind == "heads" else 1
        value[(index[:, None] * width + torch.arange(width)).flatten()] = True
    set_training(program.module, True)
    return program


@pytest.mark.parametrize("rule", ["inside", "groups"])
@pytest.mark.parametrize("metric", ["wanda", "maxip"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_model_with_omitted_neurons_times_zero(
    name, metric, rule, small
):
    program = run(small(name), f"insert-omission{{metric={metric} rule={rule} multiple=8}}")[0]
    omitting = Omitting(program)
    set_training(program.module, True)
    with omitting.training():
        omitting.begin(0, 0.5)
        loss, found = gradients(program, batch())
        kept = omitting.kept()
    grouped = name != "transposed" and rule == "groups"
    assert all(kept[item.path].numel() == item.size // 2 for item in omissions(program))
    dense, _ = gradients(small(name), batch())
    reference = masked(small(name), kept, 2 if grouped else 1)
    expected, wanted = gradients(reference, batch())
    assert abs(loss - expected) < 1e-5 < abs(loss - dense)
    zeros = 0
    for path, gradient in wanted.items():
        assert torch.allclose(found[path], gradient, atol=1e-5), path
        gone = gradient == 0
        zeros += int(gone.sum())
        assert bool((found[path][gone] == 0).all()), path
    assert zeros > 10_000


@pytest.mark.parametrize("name", MODELS)
def test_the_control_multiplies_by_zero_and_agrees(name, small):
    found = []
    for form in ("gather", "zero"):
        program = run(small(name), f"insert-omission{{multiple=8 form={form}}}")[0]
        omitting = Omitting(program)
        set_training(program.module, True)
        with omitting.training():
            omitting.begin(3, 0.5)
            with FlopCounterMode(display=False) as flops:
                loss, grads = gradients(program, batch())
        found.append((loss, grads, flops.get_total_flops()))
    assert abs(found[0][0] - found[1][0]) < 1e-5
    for path, gradient in found[1][1].items():
        assert torch.allclose(found[0][1][path], gradient, atol=1e-5), path
    assert found[0][2] < 0.85 * found[1][2]


def test_products_shrink_to_what_is_kept(small):
    """Three products for each weight: forward, by its input, by itself; scoring makes none."""
    program = run(small("grouped"), "insert-omission{multiple=8}")[0]
    omitting = Omitting(program)
    set_training(program.module, True)
    counted = {}
    with omitting.training():
        for rate in (0.0, 0.5):
            omitting.begin(0, rate)
            with FlopCounterMode(display=False) as flops:
                inputs = program.complete({"input_ids": batch()})
                program.module(**inputs)[0].square().mean().backward()
            counts = flops.get_flop_counts()["Global"]
            counted[rate] = sum(
                n for op, n in counts.items() if str(op) in ("aten.mm", "aten.addmm")
            )
    tokens, hidden = 21, 64
    made = {0.0: 2 * 64 + 2 * 32 + 3 * 48, 0.5: 2 * 32 + 2 * 32 + 3 * 24}
    for rate, outputs in made.items():
        wanted = 3 * 2 * tokens * hidden * (2 * outputs + 60)
        assert counted[rate] == wanted


@pytest.mark.parametrize("name", ["block", "llama", "gpt2", "bert"])
@pytest.mark.parametrize("options", ["", " rule=groups", " form=zero", " of=channels"])
def test_at_rest_it_is_the_dense_model_and_leaves_no_trace(name, options, traced):
    program = traced(name)
    before, outputs = to_text(program), program.run()
    parse(f"insert-omission{{multiple=4{options}}}").run(program)
    assert to_text(program) != before
    assert all(torch.equal(a, b) for a, b in zip(outputs, program.run(), strict=True))
    parse("remove-omission").run(program)
    assert to_text(program) == before


def test_evaluation_inside_a_run_is_dense(traced):
    program = traced("llama")
    outputs = program.run()[0]
    parse("insert-omission").run(program)
    omitting = Omitting(program)
    with omitting.training():
        omitting.begin(0, 0.5)
        assert torch.equal(program.run()[0], outputs)
        set_training(program.module, True)
        moved = program.module(**program.sample)[0]
        assert not torch.allclose(moved, outputs, atol=1e-3)
        assert torch.equal(program.run()[0], outputs)


def test_a_stored_program_omits_as_before(traced, text, tmp_path):
    program = traced("llama")
    parse("insert-omission{multiple=8}").run(program)
    save(program, tmp_path / "program")
    loaded = load(tmp_path / "program")
    assert to_text(loaded) == to_text(program)
    pipeline = "train{steps=3 batch=4 schedule=lors{hold=1.0}} | remove-omission"
    one, rows = run(program, pipeline, text)
    two, _ = run(loaded, pipeline, text)
    assert rows[0]["omission"] == pytest.approx(0.5)
    assert all(torch.equal(value, two.tensor(path)) for path, value in one.tensors())


def test_rate_zero_is_dense_training_bitwise(traced, tokens):
    steps = "steps=100 batch=4 lr=0.003"
    dense, one = run(traced("block"), f"train{{{steps}}}", tokens)
    program = traced("block")
    pipeline = f"insert-omission{{multiple=4}} | train{{{steps} schedule=lors{{rate=0.0}}}}"
    rested, two = run(program, f"{pipeline} | remove-omission", tokens)
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    assert {row["omission"] for row in two} == {0.0}
    assert all(torch.equal(value, rested.tensor(path)) for path, value in dense.tensors())


def test_a_run_goes_by_the_ladder_and_tells_figures(traced, text):
    program, rows = run(traced("llama"), SAT.format("", 20, "rate=0.5 hold=0.5 rungs=2"), text)
    rates = [row["omission"] for row in rows]
    assert rates[:11] == pytest.approx([0.5] * 11)
    # Three of four heads or as near as groups of two allow, and 72 of 96 channels.
    assert rates[11:16] == pytest.approx([(0 + 0.25) / 2] * 5)
    assert rates[16:] == [0.0] * 4
    assert "jaccard" not in rows[0]
    assert all(0 < row["jaccard"] <= 1 for row in rows[1:])
    coverage = [row["coverage"] for row in rows]
    assert coverage == sorted(coverage)
    assert coverage[0] == pytest.approx(0.5)
    assert coverage[-1] == 1.0
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert "omission" not in program.features


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(traced, text):
    pipeline = SAT.format(" metric=uniform select=sampling", 6, "hold=1.0")
    one, two, other = (
        dict(run(traced("llama"), pipeline, text, s)[0].tensors()) for s in (1, 1, 2)
    )
    assert all(torch.equal(value, two[path]) for path, value in one.items())
    assert not all(torch.equal(value, other[path]) for path, value in one.items())


class Interrupted(Exception):
    pass


class Killer:
    """A progress that ends the run after so many steps."""

    def __init__(self, after):
        self.left = after

    def start(self, title, total):
        pass

    def advance(self, **figures):
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def test_a_run_that_was_stopped_goes_on_bitwise(traced, text, tmp_path):
    pipeline = SAT.format(" select=sampling", 12, "hold=0.5 rungs=2").replace(
        "batch=4", "batch=4 save_every=4"
    )
    whole, rows = run(traced("llama"), pipeline, text)
    context = Context(data=text, progress=Killer(7))
    with pytest.raises(Interrupted):
        parse(pipeline).run(traced("llama"), context, resume=tmp_path)
    assert any(tmp_path.rglob("step-00000004"))
    context = Context(data=text)
    resumed = parse(pipeline).run(traced("llama"), context, resume=tmp_path)
    again = context.figures["train"]
    for name in ("loss", "omission", "coverage", "jaccard"):
        assert [row.get(name) for row in again] == [row.get(name) for row in rows], name
    assert all(torch.equal(value, resumed.tensor(path)) for path, value in whole.tensors())


BAD = [
    ("insert-omission{metric=uniform}", OptionError, "uniform scores have no best neurons"),
    ("insert-omission{of=heads,heads}", OptionError, "each once"),
    ("insert-omission{multiple=64}", OptionError, "multiple=64 leaves nothing to choose among 96"),
    ("insert-omission{multiple=0}", OptionError, "multiple=0 leaves nothing"),
    ("insert-omission{targets=nothing}", OptionError, "the target 'nothing' matches no linear"),
    ("insert-omission{targets=lm_head}", OptionError, "no target takes prunable heads or channels"),
    ("insert-omission{metric=taylor}", OptionError, "cannot be 'taylor'"),
    ("insert-masks | insert-omission", PipelineError, "cannot run while the program has"),
    ("insert-omission | insert-masks", PipelineError, "put remove-omission before it"),
    ("insert-omission | insert-lora", PipelineError, "put remove-omission before it"),
    ("insert-omission | insert-omission", PipelineError, "already has"),
    ("insert-omission | train{steps=2}", PipelineError, "put remove-omission before it"),
    ("train{steps=2 schedule=lors}", PipelineError, "needs ['omission']"),
    ("remove-omission", PipelineError, "needs ['omission']"),
    ("insert-omission | train{steps=2 schedule=lors{rate=1.0}}", OptionError, "less than 1"),
    ("insert-omission | train{steps=2 schedule=lors{hold=1.5}}", OptionError, "from 0 to 1"),
    ("insert-omission | train{steps=2 schedule=lors{rungs=0}}", OptionError, "at least 1"),
    ("insert-omission | train{steps=2 schedule=lors{pace=3}}", OptionError, "no option 'pace'"),
]


@pytest.mark.parametrize(("pipeline", "kind", "sentence"), BAD)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    pipeline, kind, sentence, traced, text
):
    program = traced("llama")
    before = to_text(program)
    with pytest.raises(kind) as caught:
        run(program, pipeline, text)
    assert sentence in str(caught.value)
    assert to_text(program) == before
    assert program.log == []


def test_neurons_that_are_used_before_their_input_are_left_out_and_said(traced, small):
    with pytest.raises(OptionError, match="the program omits nothing; put insert-omission before"):
        Omitting(traced("llama"))
    program = small("grouped")
    parse("insert-omission{multiple=8}").run(program)
    with pytest.raises(OptionError, match=r"an omission rate of 1 is not in \[0, 1\)"):
        Omitting(program).begin(0, 1.0)
