"""What was measured is kept beside the models, and in their cards between two marks and nowhere else."""

import json

import pytest

from sparsify.describe.card import MEASURED
from sparsify.pretrained.origin import CARD
from sparsify.report.found import find
from sparsify.report.page import write_page
from sparsify.report.record import record
from tests.report.test_page import BENCH, EVAL

TEXT = f"# Mine\n\n{MEASURED[0]}\nNothing yet.\n{MEASURED[1]}\n\nAnd more, *by hand*.\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("onnx", "encoder", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / CARD).write_text(TEXT if name != "own" else "# All my own\n")
    return tmp_path


def card(folder, name):
    return (folder / name / CARD).read_text()


def test_cards_say_what_was_measured_of_their_model(folder):
    record(folder, "eval", EVAL)
    assert json.loads((folder / "eval.json").read_text()) == EVAL
    assert card(folder, "onnx") == TEXT.replace(
        "Nothing yet.", "- perplexity 12.35 (10,000 tokens of `a.txt`, context 128)"
    )
    assert card(folder, "encoder") == TEXT.replace(
        "Nothing yet.",
        "- embeddings: mean cosine 0.9877 to those of the dense model, lowest 0.5000 "
        "(77 sentences of `b.txt`)",
    )
    record(folder, "bench", BENCH)
    lines = card(folder, "onnx").partition(MEASURED[0])[2].partition(MEASURED[1])[0].splitlines()
    assert lines[1].startswith("- perplexity 12.35")
    assert lines[2] == (
        "- 1.50 times as fast as the dense model (1.40 to 2.00, 1 \u00d7 1 tokens after 500, "
        "2 thread(s), some & other)"
    )
    assert "fast" not in card(folder, "encoder")


def test_other_cards_stay_as_they_are(folder):
    record(folder, "eval", {**EVAL, "own": EVAL["onnx"]})
    assert card(folder, "own") == "# All my own\n"
    (folder / "onnx" / CARD).write_text(f"{MEASURED[1]} and {MEASURED[0]}")
    record(folder, "eval", EVAL)
    assert card(folder, "onnx") == f"{MEASURED[1]} and {MEASURED[0]}"
    (folder / "encoder" / CARD).unlink()
    record(folder, "eval", EVAL)
    assert not (folder / "encoder" / CARD).exists()


def test_a_folder_of_one_model_is_measured_by_itself(folder):
    record(folder / "onnx", "eval", {"onnx": EVAL["onnx"]})
    assert "- perplexity 12.35" in card(folder, "onnx")


SCORES = {
    "task": "made", "items": 1200, "shots": 0,
    "metrics": {"acc": {"value": 0.5, "stderr": 0.0144}, "acc_norm": {"value": 0.25, "stderr": None}},
}  # fmt: skip


def test_scores_on_tasks_stand_beside_perplexities(folder):
    about = {"name": "onnx", "kind": "onnx"}
    record(folder, "eval", EVAL)
    record(folder, "eval", {"onnx": {**about, "tasks": {"made": SCORES}}})
    assert json.loads((folder / "eval.json").read_text()) == {
        "onnx": {**EVAL["onnx"], "tasks": {"made": SCORES}}
    }
    assert card(folder, "onnx") == TEXT.replace(
        "Nothing yet.",
        "- perplexity 12.35 (10,000 tokens of `a.txt`, context 128)\n"
        "- made: acc 0.500 \u00b1 0.014, acc_norm 0.250 (1,200 items, 0 shots)",
    )
    other = {**SCORES, "task": "other"}
    record(folder, "eval", {"onnx": {**about, "tasks": {"other": other}}})
    new = {**EVAL["onnx"], "perplexity": 7.0}
    record(folder, "eval", {"onnx": new})
    kept = json.loads((folder / "eval.json").read_text())["onnx"]
    assert kept == {**new, "tasks": {"made": SCORES, "other": other}}
    text = write_page(find(folder)).read_text(encoding="utf-8")
    assert "<td>0.500 \u00b1 0.014</td><td>0.250</td><td>1,200</td><td>0</td>" in text
    assert text.index("7.000") < text.index(">other<")


def test_a_page_of_scores_alone_says_the_first_and_damage_is_written_over(folder):
    (folder / "eval.json").write_text("{")
    record(folder, "eval", {"own": {"name": "own", "kind": "gguf", "tasks": {"made": SCORES}}})
    text = write_page(find(folder)).read_text(encoding="utf-8")
    assert '<p class="value">0.500 \u00b1 0.014</p><p>made, 1,200 items</p>' in text
    assert "not measured here" in text.partition("Speed")[2]
