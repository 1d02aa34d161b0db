"""Runs that were interrupted, met another, or met a disk that refuses; and `--resume` after each."""

import contextlib
import fcntl
import os
import resource
import signal

import pytest
import torch

from sparsify import load, save
from sparsify.disk.weights_file import write_tensors
from sparsify.report.record import record
from sparsify.train import loop

PIPELINE = (
    "insert-masks | choose-masks{sparsity=0.5} | train{steps=6 batch=2 save_every=2} | fold-masks"
)


def send(number):
    """A step of training that is interrupted the fourth time it is called, twice as impatient people do.

    A polite kill is made another error on the way, as compiled code does that fails to read a number.
    """
    step = loop._Run.step

    def stepped(self, index):
        if index == 3:
            try:
                os.kill(os.getpid(), number)
            except BaseException as error:
                os.kill(os.getpid(), number)
                if number == signal.SIGTERM:
                    raise RuntimeError(f"failed to unpack with error {error}") from None
                raise
        return step(self, index)

    return stepped


@contextlib.contextmanager
def heard(number):
    """Whoever started the tests may have switched a signal off, as a shell does for its background."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_one_that_never_was(
    model, text, tmp_path, cli, monkeypatch
):
    mine = tmp_path / "text.txt"
    mine.write_text(text.read_text())
    words = ["run", "--model", model, "--data", mine, "--pipeline", PIPELINE, "--length", 16]
    assert cli(*words, "--out", tmp_path / "whole")[0] == 0

    out = tmp_path / "broken"
    state = out / ".resume"
    for number, word, more in (
        (signal.SIGINT, "interrupted", []),
        (signal.SIGTERM, "terminated", ["--resume"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "step", send(number))
            with heard(number):
                code, _, error = cli(*words, "--out", out, *more)
        assert (code, error) == (
            128 + number,
            f"{word}: what was done is kept in '{state}'; the same command with --resume goes on\n",
        )
        assert sorted(path.name for path in out.iterdir()) == [".resume", ".tokens"]

    code, _, error = cli(*words, "--out", out)
    assert (code, "is not empty" in error) == (1, True)
    code, _, error = cli(*words, "--seed", 1, "--out", out, "--resume")
    assert (code, "seed=0, not 1" in error) == (1, True)
    mine.write_text(text.read_text().replace("e", "a", 1))
    code, _, error = cli(*words, "--out", out, "--resume")
    assert (code, error) == (
        1,
        f"error: '{state}' keeps the state of another run: other data; give the same, or remove it, "
        "or choose another folder\n",
    )
    mine.write_text(text.read_text())
    code, _, error = cli("eval", out, "--data", mine)
    assert (code, error) == (
        1,
        f"error: '{out}' holds no program, model.onnx or Hugging Face model; a run is going on there "
        "or was interrupted\n",
    )
    assert cli(*words, "--out", out, "--resume")[0] == 0

    whole, resumed = load(tmp_path / "whole" / "safetensors"), load(out / "safetensors")
    expected = dict(whole.tensors())
    assert all(torch.equal(value, expected[path]) for path, value in resumed.tensors())
    assert not state.exists()
    assert not (out / ".tokens").exists()
    code, _, error = cli(*words, "--out", out, "--resume")
    assert (code, "there is nothing to resume" in error) == (1, True)


def test_a_second_run_into_a_folder_touches_nothing(model, text, tmp_path, cli):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("mine")
    base = ["--model", model, "--data", text, "--out", out]
    verbs = [
        ["run", *base, "--pipeline", "insert-masks", "--overwrite"],
        ["run", *base, "--pipeline", "insert-masks", "--resume"],
        ["stream", *base, "--masks", "choose-masks{score=wanda pattern=2:4}"],
        ["export", model, "--to", "onnx", "--out", out],
        ["demo", "--out", out, "--overwrite"],
        ["report", out],
    ]
    holder = os.open(out, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        for words in verbs:
            code, _, error = cli(*words)
            assert code == 1
            assert error.startswith(f"error: '{out}' is being written by process {os.getpid()}, ")
            assert error.count("\n") == 1
        assert record(out, "eval", {}).startswith(
            f"not kept beside the model: '{out}' is being written by "
        )
    finally:
        os.close(holder)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("model.onnx", "mine")]


@pytest.mark.parametrize("verb", ["run", "stream", "export"])
def test_a_file_that_may_not_grow_leaves_nothing(verb, model, text, tmp_path, cli, monkeypatch):
    """The weights have more than the 20 kilobytes that the system lets a file have."""
    out = tmp_path / "out"
    base = ["--model", model, "--data", text, "--out", out, "--length", 16]
    words = {
        "run": ["run", *base, "--pipeline", "insert-masks"],
        "stream": [
            "stream",
            *base,
            "--samples",
            4,
            "--masks",
            "choose-masks{score=wanda pattern=2:4}",
        ],
        "export": ["export", model, "--to", "huggingface", "--out", out],
    }[verb]
    place = {"run": ".resume/after-01", "export": "huggingface"}.get(verb)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        write_tensors(*args) if args else None

    # Before, streaming maps empty files as large as the weights.
    monkeypatch.setattr("sparsify.stream.output.write_tensors", limit)
    if verb != "stream":
        limit()
    try:
        code, _, error = cli(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert error.endswith(": File too large\n")
    assert f"could not write '{out}/{place or '.resume/shards/shard-'}" in error
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_was_left_is_not_taken_up_unasked(model, tmp_path, cli, monkeypatch):
    """A finished state of other weights under the very options that are given."""
    words = ["run", "--model", model, "--pipeline", "insert-masks | fold-masks", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr("sparsify.commands.run.publish", None)
        with pytest.raises(TypeError):
            cli(*words, tmp_path / "out")
    kept = tmp_path / "out" / ".resume" / "after-02"
    other = load(kept)
    other.tensor("model.norm.weight").data.fill_(7)
    save(other, kept, overwrite=True)
    assert cli(*words, tmp_path / "out", "--overwrite")[0] == 0
    found = load(tmp_path / "out" / "safetensors").tensor("model.norm.weight")
    assert float(found.detach().max()) == 1


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
        "run.yaml",
    }


def test_an_export_that_fails_loses_nothing(model, text, tmp_path, cli, monkeypatch):
    chosen = "choose-masks{of=blocks score=influence sparsity=0.25}"
    words = ["run", "--model", model, "--data", text, "--length", 32, "--out", tmp_path / "out"]
    words += ["--pipeline", f"insert-masks{{of=blocks}} | {chosen} | prune-layers{{of=blocks}}"]
    code, _, error = cli(*words, "--to", "huggingface")
    assert code == 1
    assert "cannot leave out the 1 blocks" in error
    assert "run again with --resume and another --to" in error
    monkeypatch.setattr("passes.prune_layers.PruneLayers.rewrite", None)  # not called again
    assert cli(*words, "--to", "safetensors", "--resume")[0] == 0
    assert len(load(tmp_path / "out" / "safetensors").plan["blocks"]) == 1
