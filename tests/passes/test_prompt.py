"""Soft prompts: R6 of the reference, against the model itself on rows put before its embeddings."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import DataError, OptionError, PipelineError
from sparsify.ir.decode.variant import decoder
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.features.prefix import prefixes
from sparsify.ir.features.prompt import add_prompt, prompts
from sparsify.ir.storage.folder import load, save
from sparsify.ir.trace.trace import trace
from sparsify.runtime.generate import load_onnx
from tests.decoding import MASK, PROMPTS, greedy
from tests.ir.axes.families import FAMILIES as WINDOWED
from tests.ir.decode.test_variant import stepped

FAMILIES = ["llama", "gpt2", "opt"]


def run(program, pipeline, data=None, **more):
    return parse(pipeline).run(program, Context(data=data), **more)


def prompted(program, tokens=5, init="words"):
    return run(program, f"insert-prompt{{tokens={tokens} init={init}}} | choose-prompt")


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_the_model_does_behind_rows_before_its_embeddings(family, build, traced):
    """R6, positions and padding on either side included."""
    model, program = build(family), prompted(traced(family), init="normal")
    (found,) = prompts(program)
    rows = program.tensor(found.rows)
    embedded = torch.cat([rows.expand(3, -1, -1), model.get_input_embeddings()(PROMPTS)], 1)
    mask = torch.cat([torch.ones(3, 5, dtype=torch.long), MASK], 1)
    given = {"inputs_embeds": embedded, "attention_mask": mask}
    batch = {"input_ids": PROMPTS, "attention_mask": MASK}
    if "position_ids" in program.sample:
        given["position_ids"] = torch.arange(11).expand(3, 11)
    with torch.no_grad():
        wanted = model(**given).logits[:, 5:][MASK.bool()]
    assert apart(program.run(batch)[0][MASK.bool()], wanted) <= 1e-5
    assert apart(traced(family).run(batch)[0][MASK.bool()], wanted) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_place_is_the_identity(family, traced):
    """R6: p = 0, bit for bit, on and off."""
    program = traced(family)
    wanted = program.run()[0]
    found = add_prompt(program, torch.zeros(0, 64))
    program.module.recompile()
    assert torch.equal(program.run()[0], wanted)
    program.tensor(found.switch).fill_(1)
    assert torch.equal(program.run()[0], wanted)


def test_a_hidden_prompt_weighs_nothing_whatever_it_holds(traced):
    program = traced("llama")
    wanted = program.run()[0]
    run(program, "insert-prompt")
    (found,) = prompts(program)
    assert apart(program.run()[0], wanted) <= 1e-5
    program.tensor(found.rows).data.mul_(100)
    assert apart(program.run()[0], wanted) <= 1e-5
    program.tensor(found.switch).fill_(1)
    assert apart(program.run()[0], wanted) > 0.1


@pytest.mark.parametrize(("family", "tokens"), [("llama", 32), ("gpt2", 32), ("opt", 8)])
def test_keys_and_values_in_its_place(family, tokens, traced):
    """R6: the folded prefix is the concat form, whole and step by step behind a cache."""
    program = prompted(traced(family), tokens)
    batch = program.complete({"input_ids": PROMPTS, "attention_mask": MASK})
    ids = program.sample["input_ids"]
    padded, wanted = program.run(batch)[0][MASK.bool()], program.run({"input_ids": ids})[0]
    work, plain = multiply_adds(program, 1, 20), multiply_adds(traced(family), 1, 20)
    cached = decoder(program)
    run(program, "fold-prompt")
    assert apart(program.run(batch)[0][MASK.bool()], padded) <= 1e-5
    assert plain < multiply_adds(program, 1, 20) < work
    for made in (cached, decoder(program)):
        found, caches = stepped(made, ids, (3, 1, ids.shape[1] - 4))
        assert apart(found, wanted) <= 1e-5
        assert {value.shape[2] for value in caches.values()} == {ids.shape[1]}
    kept = program.tensor(prefixes(program)[0].key)
    assert kept.shape[2] == tokens
    kept.roll(1, 1).mul_(2)
    program.tensor(prefixes(program)[0].value).zero_()
    assert apart(program.run({"input_ids": ids})[0], wanted) > 1e-3


def test_only_the_prompt_learns(traced, text):
    program = prompted(traced("llama"))
    (found,) = prompts(program)
    before = {path: value.detach().clone() for path, value in program.tensors()}
    figures = {}
    context = Context(data=text, figures=figures)
    parse("train{steps=30 batch=8 lr=0.05 update=prompt}").run(program, context)
    moved = {path for path, value in program.tensors() if not torch.equal(value, before[path])}
    assert moved == {found.rows}
    losses = [row["loss"] for row in figures["train"]]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_of_several_draws_the_best_is_kept(traced, text):
    report = Report()
    run(traced("gpt2"), "insert-prompt | choose-prompt{tries=4 samples=8}", text, report=report)
    words = report.rows[1].note.split()
    best, first = float(words[5]), float(words[-1])
    assert report.rows[1].note.startswith("the best of 4 has")
    assert best < first


def test_it_is_saved_exported_and_goes_on(traced, tmp_path):
    """Both forms and both formats; the engine reads back and compares. Text goes on as the program says."""
    program = prompted(traced("llama"))
    save(program, tmp_path / "concat")
    assert torch.equal(load(tmp_path / "concat").run()[0], program.run()[0])
    export(program, tmp_path / "concat-form", ["onnx"])
    run(program, "fold-prompt")
    save(program, tmp_path / "folded")
    assert torch.equal(load(tmp_path / "folded").run()[0], program.run()[0])
    paths = export(program, tmp_path / "folded-form", ["onnx", "onnx-decode"])
    model = load_onnx(paths["onnx-decode"])
    ids = PROMPTS[:1]
    wanted = greedy(program, ids, torch.ones_like(ids), 8)
    assert model.generate(ids, tokens=8).ids[0].tolist()[-8:] == wanted[0, -8:].tolist()
    assert wanted.tolist() != greedy(traced("llama"), ids, torch.ones_like(ids), 8).tolist()


def test_windows_take_rows_of_one_length(tmp_path):
    """Padding would stand in the window, between the prompt and the text: refused, and right without it."""
    program = prompted(trace(WINDOWED["mistral"]().eval()))
    model = load_onnx(export(program, tmp_path / "window", ["onnx-decode"])["onnx-decode"])
    with pytest.raises(OptionError, match="give prompts of one length, or one at a time"):
        model.generate([[5, 6, 7], [5, 6]], tokens=2)
    assert "must be of one length" in (model.path.parent / "sparsify.json").read_text()
    ids = PROMPTS[:1]
    wanted = greedy(program, ids, torch.ones_like(ids), 8)
    for prompt in (ids, ids.repeat(2, 1)):
        assert (
            model.generate(prompt, tokens=8).ids[-1].tolist()
            == wanted[0, -len(ids[0]) - 8 :].tolist()
        )


def test_positions_are_fewer(traced, text):
    program = prompted(traced("gpt2"), 100)
    assert admission_of_program(program).positions == 28
    run(program, "fold-prompt")
    assert admission_of_program(program).positions == 28
    with pytest.raises(
        OptionError, match=r"tokens=120 leaves 8 of the model's 128 positions to a seq"
    ):
        run(traced("gpt2"), "insert-prompt{tokens=120}")
    longer = type(text)(torch.randint(3, 290, (300,)), 30)
    steps = "insert-prompt{tokens=100} | choose-prompt | train{steps=1 update=prompt}"
    with pytest.raises(
        DataError, match="30 tokens are too long for the model, which has 28 positions"
    ):
        run(traced("gpt2"), steps, longer)


@pytest.mark.parametrize(
    ("family", "steps", "sentence"),
    [
        ("llama", "insert-prompt{tokens=0}", "tokens=0 makes no prompt; it must be at least 1"),
        ("llama", "insert-prompt | choose-prompt{tries=0}", "must be at least 1"),
        (
            "block",
            "insert-prompt",
            "the program takes no attention mask, by which a prompt is hidden until it is chosen",
        ),
        (
            "bert",
            "insert-prompt",
            "the output 'logits' has not one row a token, the prompt's to be left out",
        ),
        ("mlp", "insert-prompt", "there is no input 'input_ids' of varying length"),
    ],
)
def test_what_cannot_be_meant(family, steps, sentence, traced):
    with pytest.raises(OptionError) as caught:
        run(traced(family), steps)
    assert str(caught.value).endswith(sentence)


def test_what_counts_by_itself_and_what_is_off(traced, text):
    config = BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    with pytest.raises(OptionError, match="a prompt that is hidden is felt all the same"):
        run(trace(BertForMaskedLM(config).eval()), "insert-prompt")
    with pytest.raises(PipelineError, match=r"needs \['prompted'\].*choose-prompt"):
        run(traced("llama"), "insert-prompt | train{steps=1 update=prompt}", text)
    with pytest.raises(PipelineError, match=r"needs \['prompted'\]"):
        run(traced("llama"), "insert-prompt | fold-prompt")


def test_a_prompt_is_folded_before_a_store_is_made(traced, text):
    steps = "insert-prompt{tokens=5} | choose-prompt | insert-neighbours{size=64}"
    with pytest.raises(PipelineError, match="put insert-neighbours behind"):
        run(traced("llama"), f"{steps} | choose-neighbours{{share=0.5}} | fold-prompt", text)
