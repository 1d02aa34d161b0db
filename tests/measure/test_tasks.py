"""What the harness asks is answered as by its own class for transformers, and the harness scores it."""

import ast
import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

import sparsify
from sparsify.errors import DataError, OptionError, SparsifyError
from sparsify.ir.facts.admission import ANYTHING, Admission, admission_of_model
from sparsify.measure.harness import Adapter
from sparsify.measure.silence import silent
from sparsify.measure.suite import Suite
from sparsify.measure.tasks import Asked, Metric, asked, load_tasks, metric_words, score
from tests.made_tasks import ROWS, make_tasks

PAIRS = [
    ("Question: what is a table?\nAnswer:", " a list of rows"),
    ("Question: what is a table?\nAnswer:", " rows"),
    ("Question: what is a table?\nAnswer:", " a"),
    ("", "The server starts."),
    ("A text that ends in a space ", "and goes on for a while, longer than all the others are"),
]


@pytest.fixture(scope="module")
def embedded():
    model, tokenizer = sparsify.load_model("embedded")
    return model, tokenizer


@pytest.fixture(scope="module")
def subject(embedded):
    model, tokenizer = embedded
    return asked(sparsify.trace(model, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"))


def suite(made, *names, **options):
    return Suite(names, *made, **options)


def adapter(subject, batch=4, **changes):
    with silent() as aloud:
        return Adapter(dataclasses.replace(subject, **changes), batch, None, aloud)


def theirs(embedded, **options):
    model, tokenizer = embedded
    with silent():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, **options)


def requests(kind, *arguments):
    about = {"doc": {}, "idx": 0, "metadata": ("made", 0, 1)}
    return [Instance(request_type=kind, arguments=found, **about) for found in arguments]


@pytest.mark.parametrize("length", [None, 16], ids=["whole", "cut"])
def test_the_same_likelihoods_as_of_the_harness(length, embedded, subject):
    changes = {} if length is None else {"admission": Admission(4096, length)}
    ours, other = adapter(subject, **changes), theirs(embedded, max_length=length)
    pairs = PAIRS[:-1] if length else PAIRS
    if length:
        pairs = [*pairs, (" ".join([PAIRS[0][0]] * 4), " rows of a table")]
    asks = requests("loglikelihood", *pairs)
    with silent():
        found, wanted = ours.loglikelihood(asks), other.loglikelihood(asks)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in wanted], abs=1e-3)
    texts = requests("loglikelihood_rolling", *[(" ".join(pair),) for pair in pairs])
    with silent():
        found, wanted = ours.loglikelihood_rolling(texts), other.loglikelihood_rolling(texts)
    assert found == pytest.approx(wanted, abs=2e-3)


def test_the_same_texts_as_of_the_harness(embedded, subject):
    asks = requests(
        "generate_until",
        ("The SELECT statement", {"until": ["."], "max_gen_toks": 12}),
        ("Return", {"until": [" the", "\n"], "max_gen_toks": 12}),
        ("A much longer text that asks for something:", {"until": ["."], "max_gen_toks": 12}),
        ("import", {"until": [], "max_new_tokens": 3}),
    )
    with silent():
        found = adapter(subject).generate_until(asks)
        wanted = theirs(embedded).generate_until(asks)
    assert found == wanted
    assert len(set(found)) == 4


def test_the_same_scores_as_of_the_harness(embedded, subject, made):
    loaded = load_tasks(suite(made, "made_choice", "made_text", "made_answer"))
    found = {row.task: row for row in score(subject, loaded)}
    with silent():
        wanted = evaluate(
            lm=theirs(embedded), task_dict=loaded.tasks, log_samples=False, bootstrap_iters=1000
        )["results"]
    choice = found["made_choice"]
    assert choice.items == len(ROWS)
    for name in ("acc", "acc_norm"):
        figures = (
            wanted["made_choice"][f"{name},none"],
            wanted["made_choice"][f"{name}_stderr,none"],
        )
        assert choice.metrics[name] == Metric(*figures)
        assert 0 < figures[0] < 1
    perplexity = found["made_text"].metrics["word_perplexity"]
    assert perplexity.value == pytest.approx(wanted["made_text"]["word_perplexity,none"], rel=1e-4)
    assert (
        perplexity.stderr is not None or wanted["made_text"]["word_perplexity_stderr,none"] == "N/A"
    )
    assert (
        found["made_answer"].metrics["exact_match"].value
        == wanted["made_answer"]["exact_match,none"]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_padding_moves_nothing(family, build):
    """Whatever positions are made of, ids or the mask."""
    model = build(family)
    fake = SimpleNamespace(bos_token_id=1, eos_token_id=2, decode=lambda ids: "<s>")
    one = Asked(family, lambda batch: model(**batch).to_tuple(), fake, admission_of_model(model))
    rows = [(None, list(range(3, 3 + n)), [40 + n, 50]) for n in (1, 9, 4, 2, 7)]
    alone, together = (adapter(one, batch)._loglikelihood_tokens(rows) for batch in (1, 5))
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], abs=1e-3)


def test_the_first_items_are_taken_and_shared_contexts_run_once(subject, made):
    shapes, heard = [], []

    def run(batch):
        shapes.append(tuple(batch["input_ids"].shape))
        return subject.run(batch)

    loaded = load_tasks(suite(made, "made_choice", limit=2, batch=3))
    counted = dataclasses.replace(subject, run=run)
    (row,) = score(counted, loaded, lambda done, total: heard.append((done, total)))
    assert row.items == 2
    # Of five choices three are one token behind one context.
    assert sum(rows for rows, _ in shapes) == 3
    assert heard == [(0, 3), (3, 3)]
    assert shapes[0][0] == 3


def test_examples_come_before_an_item_the_same_for_every_model(subject, made):
    asked_for = []

    def run(batch):
        asked_for.append(int(batch["attention_mask"].sum()))
        return subject.run(batch)

    counted = dataclasses.replace(subject, run=run)
    loaded = load_tasks(suite(made, "made_choice", limit=2, shots=2))
    first = score(counted, loaded)
    lengths = list(asked_for)
    assert first == score(counted, loaded)
    assert asked_for == lengths * 2
    assert first[0].shots == 2
    score(counted, load_tasks(suite(made, "made_choice", limit=2)))
    assert asked_for[-1] < lengths[0]


def test_nothing_is_fetched(subject, made, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(score(subject, load_tasks(suite(made, "made_choice", limit=1)))) == 1


def test_what_cannot_be_asked_is_told(subject, made, tmp_path):
    path, data = made
    for wanted, error, sentence in (
        # The nearest of the harness's own tasks and those of the folder.
        (suite(made, "helaswag"), OptionError,
         "no task is called 'helaswag'; did you mean 'hellaswag'?"),
        (suite(made), OptionError, "no task to measure on is named"),
        (Suite(("made_choice",), tmp_path / "none"), DataError,
         f"there is no folder '{tmp_path / 'none'}' with task files"),
        (Suite(("made_choice",), path, data / "none"), DataError,
         f"there is no folder '{data / 'none'}' with data for tasks"),
        (Suite(("made_choice",), path, tmp_path), DataError,
         "the task 'made_choice' cannot be read: [Errno 2] No such file or directory: "
         f"'{tmp_path / 'rows.jsonl'}'"),
    ):  # fmt: skip
        with pytest.raises(error) as told:
            load_tasks(wanted)
        assert str(told.value) == sentence


def test_models_that_cannot_answer_are_told(subject, made):
    loaded = load_tasks(suite(made, "made_choice", limit=1))
    nan = torch.full((8, 64, 4096), torch.nan)
    for changes, kind, words in (
        ({"tokenizer": None}, DataError, "tasks need a tokenizer, and 'the program' has none"),
        ({"run": lambda b: (torch.zeros(*b["input_ids"].shape, 256),)}, DataError,
         "256], not logits over its vocabulary; tasks are for language models"),
        ({"run": lambda b: (torch.zeros(len(b["input_ids"]), 2),), "admission": ANYTHING},
         DataError, "not logits over its vocabulary"),
        ({"admission": Admission(7)}, DataError, "but the model has a vocabulary of 7"),
        ({"admission": Admission(4096, 1)}, DataError, "is longer than the 1 that 'the program'"),
        ({"run": lambda b: (nan[:, : b["input_ids"].shape[1]],)}, SparsifyError,
         "a log-likelihood became nan; the weights hold NaN"),
    ):  # fmt: skip
        changed = dataclasses.replace(subject, **changes)
        more = Suite(("made_choice",), *made)
        with pytest.raises(kind) as told:
            score(changed, load_tasks(more) if "admission" in changes else loaded)
        assert words in str(told.value)
    with pytest.raises(DataError, match="a task draws tokens at random"):
        score(subject, load_tasks(suite(made, "made_draw", limit=1)))


def test_without_the_package_a_sentence_says_what_to_install(made, monkeypatch):
    monkeypatch.setattr("sparsify.measure.tasks.find_spec", lambda name: None)
    with pytest.raises(DataError) as told:
        load_tasks(suite(made, "made_choice"))
    assert str(told.value) == (
        "tasks are measured by the package lm_eval; pip install 'sparsify-fx[tasks]'"
    )


def test_the_harness_is_imported_late():
    """Only inside functions, but for the one module that they import it by."""
    root = Path(sparsify.__file__).parent
    for path in root.rglob("*.py"):
        names = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.name for alias in node.names} | {getattr(node, "module", "")}
        late = {name for name in names if name.startswith(("lm_eval", "sparsify.measure.harness"))}
        assert not late or path == root / "measure" / "harness.py", path


def test_words_of_a_metric():
    assert metric_words({"value": 0.51, "stderr": 0.0123}) == "0.510 \u00b1 0.012"
    assert metric_words({"value": 12.5, "stderr": None}) == "12.500"
