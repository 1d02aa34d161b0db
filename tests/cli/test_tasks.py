"""`eval --tasks`: one run's formats score alike, and what they scored is shown and kept."""

import json
import shutil

import lm_eval.tasks
import pytest
from transformers import BertConfig, BertModel

from sparsify.pretrained.load import load_tokenizer
from sparsify.pretrained.quiet import quiet
from tests.made_tasks import ROWS, make_tasks

ALL = "made_choice,made_text,made_answer"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path, data = make_tasks(tmp_path_factory.mktemp("tasks"))
    return ["--task-path", path, "--task-data", data]


@pytest.fixture(scope="module")
def out(tmp_path_factory, model, cli):
    """A model in every format."""
    folder = tmp_path_factory.mktemp("scored") / "out"
    formats = "safetensors,onnx,onnx-decode,huggingface"
    assert cli("export", model, "--to", formats, "--out", folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def scored(out, made, text, cli):
    """The run with perplexities and scores, what was printed, and the rows."""
    words = ["eval", out, "--tasks", ALL, *made, "--batch", 3, "--data", text, "--length", 32]
    code, printed, error = cli(*words, "--limit", 5, "--json", out / "e.json")
    assert (code, error) == (0, "")
    return out, printed, json.loads((out / "e.json").read_text())


def test_every_format_scores_alike(scored):
    _, printed, rows = scored
    assert sorted(row["name"] for row in rows) == [
        "huggingface", "onnx", "onnx-decode", "safetensors",
    ]  # fmt: skip
    first = rows[0]["tasks"]
    assert list(first) == ALL.split(",")
    for row in rows:
        assert row["perplexity"] > 1
        choice, text, answer = (row["tasks"][name] for name in ALL.split(","))
        assert choice == first["made_choice"]
        assert (choice["items"], choice["shots"]) == (5, 0)
        assert set(choice["metrics"]) == {"acc", "acc_norm"}
        assert choice["metrics"]["acc"]["stderr"] > 0
        words = text["metrics"]["word_perplexity"]["value"]
        assert words == pytest.approx(
            first["made_text"]["metrics"]["word_perplexity"]["value"], rel=1e-3
        )
        assert answer["metrics"] == first["made_answer"]["metrics"]
    value = first["made_choice"]["metrics"]["acc"]["value"]
    assert printed.count(f"{value:.3f} \u00b1 ") >= 4
    assert "perplexity on" in printed
    assert "tasks, 0 shots" in printed


def test_what_was_scored_is_kept_beside_the_models(scored, made, text, cli):
    out, _, rows = scored
    kept = json.loads((out / "eval.json").read_text())
    assert kept == {row["name"]: row for row in rows}
    assert "- made_choice: acc 0." in (out / "onnx" / "README.md").read_text()
    assert cli("report", out)[0] == 0
    page = (out / "report.html").read_text()
    assert page.count("made_choice") == 4
    # Another text keeps the scores, other tasks keep the text and the tasks that they are not.
    assert cli("eval", out, "--data", text, "--length", 16, "--limit", 2)[0] == 0
    words = ["eval", out, "--tasks", "made_choice", *made, "--shots", 1, "--limit", 2]
    assert cli(*words)[0] == 0
    for name, row in json.loads((out / "eval.json").read_text()).items():
        assert row["context"] == 16
        assert row["tasks"]["made_choice"]["shots"] == 1
        assert row["tasks"]["made_text"] == kept[name]["tasks"]["made_text"]


def test_a_folder_of_one_model_and_the_column_of_shots(model, made, cli, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    code, printed, _ = cli("eval", copy, "--tasks", "made_choice", *made, "--shots", 1)
    assert code == 0
    assert "shots" in printed.splitlines()[2]
    row = json.loads((copy / "eval.json").read_text())["copy"]
    assert set(row) == {"name", "kind", "tasks"}
    assert row["tasks"]["made_choice"]["items"] == len(ROWS)
    assert cli("report", copy)[0] == 0
    assert "made_choice, 6 items" in (copy / "report.html").read_text()


def test_what_cannot_be_measured_is_said_in_one_sentence(
    model, made, text, cli, tmp_path, monkeypatch
):
    whole = lm_eval.tasks.TaskManager
    # Reading the harness's own thousands of tasks takes seconds.
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda **all: whole(**{**all, "include_defaults": False})
    )
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    encoder = tmp_path / "encoder"
    tokenizer = load_tokenizer(str(model))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    with quiet():
        config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
        BertModel(config).save_pretrained(encoder)
        tokenizer.save_pretrained(encoder)
    asks = ["--tasks", "made_choice", *made]
    for words, sentence in (
        ([model], "name a text by --data, or tasks by --tasks"),
        ([model, "--against", model], "name a text by --data"),
        ([model, *asks, "--data", text, "--against", model],
         "--tasks is for language models, --against for encoders; give one of them"),
        ([model, *made], "--task-path is for tasks; name some by --tasks"),
        ([model, "--data", text, "--shots", 1], "--shots is for tasks; name some by --tasks"),
        ([model, *asks, "--shots", -1], "--shots -1 must be from 0 to 1000"),
        ([model, "--tasks", "made_chioce", *made],
         "no task is called 'made_chioce'; did you mean 'made_choice'?"),
        ([model, "--tasks", ",", *made], "no task to measure on is named"),
        ([model, *asks[:2], "--task-path", "none"], "there is no folder 'none' with task files"),
        ([bare, *asks],
         "tasks need a tokenizer, and 'bare' has none; save one into the model folder"),
        ([encoder, *asks, "--limit", 1], "'encoder' gives [1, 17, 32], not logits over its "
         "vocabulary; tasks are for language models"),
    ):  # fmt: skip
        code, printed, error = cli("eval", *words)
        assert (code, printed) == (1, "")
        assert error == f"error: {sentence}\n"
