"""Sheared LLaMA: masks learnt to a target shape, what is soft taken into weights, the rest removed."""

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from sparsify.data.domains import DomainData
from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError, SparsifyError
from sparsify.ir.decode.caches import CACHES, past_name
from sparsify.ir.decode.variant import decoder
from sparsify.ir.features.soft_fold import takers
from sparsify.ir.run.soft_masks import soft_masks
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.recipes.catalogue import recipe, template
from sparsify.select.kinds.catalogue import KINDS
from sparsify.select.learned import Learning, learning, settle
from sparsify.tensors.hard_concrete import soft
from sparsify.tensors.precision import largest_difference
from sparsify.train.learned_masks import Family, LearnedMasks
from sparsify.train.loop import _Run
from tests.ir.axes.families import traced as family_traced

ALL = ("layers", "heads", "channels", "hidden")
INSERT = "insert-masks{of=layers,heads,channels,hidden}"
TARGET = "layers=1 heads=2 channels=32 hidden=48"
PRUNE = "prune-heads | prune-channels | prune-layers | prune-hidden"


def run(program, pipeline, data=None, seed=0, **options):
    context = Context(data=data, seed=seed)
    return parse(pipeline).run(program, context, **options), context.figures.get("train", [])


def double(program):
    """The program in float64; its sample holds tokens only."""
    program.module.double()
    return program


def drawn(program, *, soft, seed=0):
    """For every mask values of which half are zero and the others soft, or one; the same in each axis."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for kind in ALL:
        found[kind] = {}
        for units in KINDS[kind].units(program):
            z = 0.4 + 0.6 * torch.rand(units.size, generator=generator)
            z[torch.randperm(units.size, generator=generator)[: units.size // 2]] = 0
            values = z if soft else (z > 0).float()
            found[kind] |= {path: values[index] for path, index in units.index.items()}
    return found


def masked_outputs(program, values):
    """Outputs under masks of any values, by the graph that is trained."""
    with soft_masks(program, [path for masks in values.values() for path in masks]) as put:
        for masks in values.values():
            put(masks)
        return program.run()


@pytest.mark.parametrize(
    ("name", "soft"),
    [("llama", True), ("llama", False), ("gpt2", True), ("mixtral", True), ("gpt-neox", True)],
)
def test_masked_equals_folded(name, soft):
    """All four kinds at once, in float64 and float32; tied heads, biases, experts, blocks side by side."""
    dense, _ = run(family_traced(name), INSERT)
    for make, bound in ((double, 1e-10), (lambda program: program, 1e-4)):
        program, notes = make(dense.clone()), []
        values = drawn(program, soft=soft)
        before, masked = program.run(), masked_outputs(program, values)
        assert all(torch.equal(a, b) for a, b in zip(before, program.run(), strict=True))
        settle(program, values, notes)
        assert notes == []
        assert largest_difference(masked, program.run()) <= bound
        assert largest_difference(masked, before) > 0.1
        removed, _ = run(program.clone(), PRUNE, compare=False)
        assert largest_difference(masked, removed.run()) <= max(bound, 1e-10)


@pytest.mark.parametrize(
    "also", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")], ids="+".join
)
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "binary"])
def test_the_other_conventions_of_folding_are_wrong_for_soft_values(soft, also):
    """The width is scaled where it is read, once: embeddings, the head once more, or both are too many."""
    program = double(run(family_traced("llama"), INSERT)[0])
    values = drawn(program, soft=soft)
    masked = masked_outputs(program, values)
    settle(program, values, [])
    (width,) = values["hidden"].values()
    with torch.no_grad():
        for path, value in program.module.named_parameters():
            if any(word in path for word in also):
                value.mul_(width.double())
    moved = largest_difference(masked, program.run())
    assert moved > 0.01 if soft else moved <= 1e-10


def test_forgetting_soft_values_is_wrong():
    program = double(run(family_traced("llama"), INSERT)[0])
    values = drawn(program, soft=True)
    masked = masked_outputs(program, values)
    settle(program, drawn(program, soft=False), [])
    assert largest_difference(masked, program.run()) > 0.01


def test_where_values_go():
    """Norms take the width in, projections heads and channels, the last of each block its layer."""
    program, _ = run(family_traced("llama"), INSERT)
    values = drawn(program, soft=True)
    paths = {
        kind: sorted({t.path for path in masks for t in takers(program, kind, path)})
        for kind, masks in values.items()
    }
    layers = [f"model.layers.{i}." for i in range(2)]
    attention = [f"{layer}self_attn.o_proj.weight" for layer in layers]
    down = [f"{layer}mlp.down_proj.weight" for layer in layers]
    assert paths["heads"] == attention
    assert paths["channels"] == down
    assert paths["layers"] == sorted(attention + down)
    norms = [f"{x}{n}_layernorm.weight" for x in layers for n in ("input", "post_attention")]
    assert paths["hidden"] == sorted([*norms, "model.norm.weight"])


def test_values_that_no_weight_can_take_in_are_rounded_and_told(traced, tokens):
    """`block` has no norms and a tied head: the width is read by the embedding's own matrix."""
    context = Context(data=tokens, seed=0)
    before = traced("block")
    steps = "train{steps=4 batch=4 masks=learned{hidden=6}}"
    program = parse("insert-masks{of=hidden}").run(before, context)
    context.notes.clear()
    parse(steps).passes[0].rewrite(program, context)
    assert len(context.notes) == 1
    assert "was rounded to 0 and 1: no weight can take its values in" in context.notes[0]


def test_from_a_model_to_a_smaller_one(traced, text, tmp_path):
    """The target's shape and its count of parameters; what is stored is an ordinary smaller model."""
    steps = recipe("sheared{layers=1 heads=2 channels=32 hidden=48}").text
    steps = steps.replace("steps=400", "steps=6").replace("batch=16", "batch=4")
    program, rows = run(traced("llama"), steps, text)
    assert program.features == frozenset()
    assert len(rows) == 12
    config = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=300,
        max_position_embeddings=128,
    )
    small = transformers.LlamaForCausalLM(config)
    wanted = sum(value.numel() for value in small.parameters())
    assert sum(value.numel() for value in program.module.parameters()) == wanted
    found = export(program, tmp_path, ["huggingface"])
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        found["huggingface"], output_loading_info=True
    )
    assert not any(told.values())
    for entry in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(model.config, entry) == getattr(config, entry)
    assert {n: v.shape for n, v in model.state_dict().items()} == {
        n: v.shape for n, v in small.state_dict().items()
    }
    batch = text.batch([0, 1])
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"]).logits
    assert largest_difference([logits], program.run(batch)) <= 1e-6
    caches = decoder(program).sample
    assert {name: value.shape[1] for name, value in caches.items() if "past" in name} == {
        past_name(0, kind): 1 for kind in CACHES
    }


def test_figures_reach_the_target(traced, text):
    steps = f"{INSERT} | train{{steps=60 batch=4 lr=0.001 masks=learned{{{TARGET}}}}}"
    program, rows = run(traced("llama"), steps, text)
    ends = {"layers": 1 / 2, "heads": 1 / 2, "channels": 2 / 3, "hidden": 1 / 4}
    for kind, end in ends.items():
        assert rows[0][f"{kind}_target"] == 0
        assert rows[6][f"{kind}_target"] == pytest.approx(end / 2)
        assert rows[-1][f"{kind}_target"] == pytest.approx(end)
        assert rows[0][f"{kind}_sparsity"] == pytest.approx(0.002, abs=1e-4)
        assert rows[-1][f"{kind}_sparsity"] > end / 2
        assert rows[-1][f"{kind}_phi"] > 1
    counts = {"layers": 1, "heads": 2, "channels": 32, "hidden": 48}
    for kind, count in counts.items():
        for units in KINDS[kind].units(program):
            assert sum(int(program.tensor(path).sum()) for path in units.index) == count


def test_the_text_and_types_stay_and_weights_move(traced, text):
    program, _ = run(traced("llama"), INSERT)
    before = to_text(program)
    trained, _ = run(program, f"train{{steps=2 batch=2 masks=learned{{{TARGET}}}}}", text)
    assert to_text(trained) == before
    masks = [trained.tensor(path) for path, _ in trained.tensors() if path.endswith("_mask")]
    assert {mask.dtype for mask in masks} == {torch.bool}


def test_domains_are_measured_without_drawing(traced):
    """The last figure is the loss of the model that is left, and one asked twice is the same."""
    draw = torch.Generator().manual_seed(0)
    halves = {
        name: TextData(torch.randint(3, 43, (240,), generator=draw), 12) for name in ("a", "b")
    }
    data = DomainData(halves, holdout=0.2)
    steps = f"train{{steps=6 batch=4 domains=constant{{every=3}} masks=learned{{{TARGET}}}}}"
    program, rows = run(traced("llama"), f"{INSERT} | {steps}", data)
    for domain in data.domains:
        batch = domain.held.batch(range(len(domain.held)))
        logits = program.run({"input_ids": batch["input_ids"]})[0][:, :-1]
        wanted = cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        assert rows[-1][f"validation.{domain.name}"] == pytest.approx(float(wanted), rel=1e-5)
    placed = []
    masks = LearnedMasks({"heads": Family((8,), (4,))}, placed.append)
    for step in (0, 1):
        masks.begin(step, 0.0)
        masks.place_soft()
    (one,), (other,) = (rows["heads"] for rows in placed)
    assert torch.equal(one, other)
    assert torch.equal(one, soft(masks.log_alphas["heads"][0]))


def test_a_run_goes_on_bitwise(traced, text, tmp_path, monkeypatch):
    steps = f"{INSERT} | train{{steps=8 batch=2 save_every=3 masks=learned{{{TARGET}}}}}"
    whole, rows = run(traced("llama"), steps, text)
    calls = []

    def stop(self, step):
        calls.append(step)
        if step == 7:
            raise KeyboardInterrupt
        return original(self, step)

    original = _Run.step
    monkeypatch.setattr(_Run, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(traced("llama"), steps, text, resume=tmp_path / "r")
    monkeypatch.setattr(_Run, "step", original)
    again, found = run(traced("llama"), steps, text, resume=tmp_path / "r")
    assert calls == list(range(8))
    speed = "tokens_per_s"
    assert [{k: v for k, v in row.items() if k != speed} for row in found] == [
        {k: v for k, v in row.items() if k != speed} for row in rows
    ]
    tensors = dict(again.tensors())
    assert all(torch.equal(tensors[path], value) for path, value in whole.tensors())


def test_micro_batches_and_recomputation_learn_the_same(traced, text):
    found = []
    for how in ("batch=4", "batch=2 accumulate=2", "batch=4 recompute=layers"):
        steps = f"{INSERT} | train{{steps=3 {how} lr=0.0001 masks=learned{{{TARGET}}}}}"
        found.append(run(traced("llama"), steps, text)[1])
    for row in found[1:]:
        for a, b in zip(found[0], row, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
            assert a["hidden_sparsity"] == pytest.approx(b["hidden_sparsity"], abs=1e-5)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("heads=3", "is no number of whole KV groups of 2 query heads; take a multiple of 2"),
        ("channels=97", "channels=97 cannot be kept of the 96 channels at @"),
        ("layers=0", "layers=0 cannot be kept of the 2 layers"),
        ("channels=4", "is a sparsity of 0.958, and learned masks reach 0.953; keep at least 5"),
        ("layers=2 heads=4", "has the target shape already"),
        ("lr=1.0", "learned masks need a target; name layers, heads, channels or hidden"),
        ("channels=48 ramp=1.5", "a ramp that is a fraction of the steps"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, sentence, traced, text):
    """Before anything runs: the masks are not even in."""
    program = traced("llama")
    with pytest.raises(SparsifyError) as caught:
        run(program, f"{INSERT} | train{{steps=2 masks=learned{{{target}}}}}", text)
    assert sentence in str(caught.value)
    assert program.features == frozenset()


@pytest.mark.parametrize(
    ("before", "options", "error", "sentence"),
    [
        ("", "", PipelineError, "needs ['mask.channels']"),
        (INSERT, "update=norms", OptionError, "it needs update=all"),
        (f"{INSERT} | insert-lora", "", PipelineError, "cannot run while the program has ['lora']"),
        (INSERT, "decay=sr-ste", OptionError, "add masks=every{steps=10}"),
        (INSERT, "floor=2.0", OptionError, "floor=2.0 is a fraction of lr, from 0 to 1"),
        (
            "insert-masks{of=channels targets=model.layers.0.*}",
            "",
            OptionError,
            "the channels at @model.layers.1.mlp.down_proj.weight have no mask",
        ),
    ],
)
def test_what_masks_are_not_learnt_with(before, options, error, sentence, traced, text):
    steps = f"train{{steps=2 {options} masks=learned{{channels=48}}}}"
    with pytest.raises(error) as caught:
        run(traced("llama"), " | ".join(part for part in (before, steps) if part), text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
def test_encoders_that_norm_last_learn_layers_and_width_together(head, build):
    """A layer stays two sums under masked norms; the pooler, which a classifier takes in, is left alone."""
    torch.manual_seed(0)
    model = getattr(transformers, f"BertFor{head}")(build("bert").config)
    program = run(trace(model.eval()), INSERT)[0]
    sizes = {"layers": 1, "heads": 2, "channels": 32, "hidden": 48}
    with learning(program, Learning(sizes, lr=1.0, rise=0.2, seed=0), []):
        pass
    masks = {k: [path for u in KINDS[k].units(program) for path in u.index] for k in ALL}
    kept = {k: [int(program.tensor(path).sum()) for path in masks[k]] for k in ALL}
    assert sorted(kept["layers"]) == [0, 1]
    assert kept["heads"] == [2, 2]
    assert kept["channels"] == [32, 32]
    assert kept["hidden"] == [48]
    wanted = program.run()[0]
    smaller = run(program, PRUNE)[0]
    assert largest_difference(smaller.run()[0], wanted) <= 1e-4
    assert smaller.tensor("bert.embeddings.position_embeddings.weight").shape[1] == 48
    assert smaller.has("bert.pooler.dense.weight") is (head != "MaskedLM")


def test_the_recipe_has_the_target_as_options():
    text = recipe("sheared{layers=24 heads=16 channels=5504 hidden=2048}").text
    assert "learned{layers=24 heads=16 channels=5504 hidden=2048 " in text
    assert "layers=24" not in template("sheared").text
    for given, sentence in (
        ("sheared", "'sheared' needs the option 'layers'"),
        ("sheared{layers=2 heads=4 channels=8 width=2}", "'sheared' has no option 'width'"),
        ("magnitude{layers=2}", "'magnitude' has no option 'layers'"),
        ("sheared{layers=2} | magnitude", "is more than one recipe"),
    ):
        with pytest.raises(SparsifyError) as caught:
            recipe(given)
        assert sentence in str(caught.value)
