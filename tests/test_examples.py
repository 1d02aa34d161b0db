"""Every example runs as it is, in few steps, and says or writes what it promises."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# File -> part of what it prints. `train_embedded.py` takes an hour and is left out.
PROMISES = {
    "adaptive_with_trainer.py": "huggingface: ",
    "finetune_with_trainer.py": "huggingface: ",
    "omission_with_trainer.py": "left out, coverage",
    "own_training_loop.py": "zeros among the weights",
    "prune_digits.py": "onnx: ",
}
# Others take two.
STEPS = {"omission_with_trainer.py": ["5"], "prune_digits.py": ["100", "--sparsity", "0.6"]}


def test_no_example_is_forgotten():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PROMISES, "train_embedded.py"}


# Trainer warns of what it will change one day; that is not the example's.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PROMISES)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    words = ["--steps", *STEPS.get(name, ["2"])]
    if name != "own_training_loop.py":
        words += ["--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert PROMISES[name] in printed
    if name == "prune_digits.py":
        dense, pruned, onnx = (float(x) for x in re.findall(r": ([0-9.]+)%", printed))
        assert dense > 85
        assert 60 < pruned == onnx  # of ten digits, in a quarter of the steps
    elif "--out" in words:
        assert (tmp_path / "huggingface" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("default")
def test_the_notebook_runs_from_the_first_cell_to_the_last(capsys):
    book = json.loads((EXAMPLES / "first_hour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    names = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "choose-masks{score=sparsegpt pattern=2:4}" in said
    perplexities = re.findall(r"^(?:dense|2:4) +([0-9.]+)$", said, re.MULTILINE)
    sizes = re.findall(r"^(?:dense|packed) +([0-9.]+) MB$", said, re.MULTILINE)
    assert float(perplexities[0]) < float(perplexities[1]) < 5 * float(perplexities[0])
    assert float(sizes[1]) < 0.75 * float(sizes[0])
    assert len(re.findall(r" tokens (?:dense|packed) ", said)) == 4
    assert not any(cell.get("outputs") for cell in book["cells"])
