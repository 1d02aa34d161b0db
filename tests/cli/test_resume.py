"""`run --resume` after a run that broke off in the middle of training, or whose export failed."""

import pytest
import torch

from sparsify import load
from sparsify.train import loop

PIPELINE = (
    "insert-masks | choose-masks{sparsity=0.5} | train{steps=6 batch=2 save_every=2} | fold-masks"
)


def test_a_resumed_run_ends_as_one_that_never_broke(model, text, tmp_path, cli, monkeypatch):
    words = ["run", "--model", model, "--data", text, "--pipeline", PIPELINE, "--length", 16]
    assert cli(*words, "--out", tmp_path / "whole")[0] == 0

    step = loop._Run.step

    def break_off(self, number):
        if number == 3:
            raise RuntimeError("pulled the plug")
        return step(self, number)

    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "step", break_off)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            cli(*words, "--out", out)
    assert [path.name for path in out.iterdir()] == [".resume"]

    code, _, error = cli(*words, "--out", out)
    assert (code, "is not empty" in error) == (1, True)
    code, _, error = cli(*words, "--seed", 1, "--out", out, "--resume")
    assert (code, "seed=0, not 1" in error) == (1, True)
    assert cli(*words, "--out", out, "--resume")[0] == 0

    whole, resumed = load(tmp_path / "whole" / "safetensors"), load(out / "safetensors")
    expected = dict(whole.tensors())
    assert all(torch.equal(value, expected[path]) for path, value in resumed.tensors())
    assert not (out / ".resume").exists()
    code, _, error = cli(*words, "--out", out, "--resume")
    assert (code, "there is nothing to resume" in error) == (1, True)


def test_overwriting_forgets_formats_that_are_not_written_again(model, tmp_path, cli):
    words = [
        "run",
        "--model",
        model,
        "--pipeline",
        "insert-masks | fold-masks",
        "--out",
        tmp_path / "o",
    ]
    assert cli(*words, "--to", "safetensors,huggingface")[0] == 0
    assert cli(*words, "--to", "safetensors", "--overwrite")[0] == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "safetensors",
        "report.json",
        "run.json",
    }


def test_an_export_that_fails_loses_nothing(model, text, tmp_path, cli, monkeypatch):
    chosen = "choose-masks{of=layers score=influence sparsity=0.5}"
    words = ["run", "--model", model, "--data", text, "--length", 32, "--out", tmp_path / "out"]
    words += ["--pipeline", f"insert-masks{{of=layers}} | {chosen} | prune-layers"]
    code, _, error = cli(*words, "--to", "huggingface")
    assert code == 1
    assert "cannot leave out the 1 layers" in error
    assert "run again with --resume and another --to" in error
    monkeypatch.setattr("passes.prune_layers.PruneLayers.rewrite", None)  # not called again
    assert cli(*words, "--to", "safetensors", "--resume")[0] == 0
    assert len(load(tmp_path / "out" / "safetensors").plan["layers"]) == 1
