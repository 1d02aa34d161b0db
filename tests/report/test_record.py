"""What was measured is kept beside the models, and in their cards between two marks and nowhere else."""

import json

import pytest

from sparsify.describe.card import CARD, MEASURED
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
