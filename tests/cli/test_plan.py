"""`run --plan`: what trainings take, without weights, data or a folder."""

import json

import pytest

AST = "insert-masks | choose-masks{pattern=2:4} | train{steps=4 batch=8 distill=kl masks=every}"


@pytest.fixture
def bare(model, tmp_path):
    """A folder with a config and nothing else."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    return folder


def test_a_plan_reads_no_weight_and_writes_nothing(bare, tmp_path, cli):
    out, file = tmp_path / "out", tmp_path / "plan.json"
    words = ["run", "--model", bare, "--out", out, "--length", 16, "--plan", "--json", file]
    code, printed, errors = cli(*words, "--pipeline", AST, "--ranks", 4, "--sharded")
    assert (code, errors) == (0, "")
    assert "on each of 4 ranks, FSDP2" in printed
    assert "peak" in printed
    assert not out.exists()
    found = json.loads(file.read_text())
    (row,) = found["trainings"]
    assert found["ranks"] == {"count": 4, "sharded": True}
    assert row["train"].startswith("train{steps=4")
    assert row["learned"] == row["parameters"]
    assert 4 * row["weights"] == 4 * row["parameters"]
    # A byte an entry of a mask, and the whole dense twin.
    assert row["others"] > 4 * row["parameters"]
    assert row["peak"] > row["others"] + row["weights"] + row["moments"]


def test_trainings_that_take_the_same_share_a_column(bare, tmp_path, cli):
    words = ["run", "--model", bare, "--out", tmp_path / "out", "--length", 16, "--plan"]
    code, printed, _ = cli(*words, "--pipeline", f"{AST} | train{{steps=2}} | train{{steps=9}}")
    assert code == 0
    assert "train 1: all" in printed
    assert "train 2-3: all" in printed
    assert "in one process" in printed


def test_what_cannot_be_planned_is_told(bare, tmp_path, cli):
    words = ["run", "--model", bare, "--out", tmp_path / "out", "--plan"]
    for more, sentence in (
        (["--pipeline", "insert-masks"], "trains nothing, so that there is no step to plan"),
        (["--pipeline", AST, "--ranks", 0], "--ranks 0 must be at least 1"),
        (["--pipeline", f"insert-masks{{targets=*nothing*}} | {AST}"], "matches no linear"),
    ):
        code, _, error = cli(*words, *more)
        assert (code, sentence in error) == (1, True), error


def test_what_removal_would_change_is_said(bare, tmp_path, cli):
    words = ["run", "--model", bare, "--out", tmp_path / "out", "--plan", "--recipe", "structured"]
    code, printed, _ = cli(*words)
    assert code == 0
    assert "Sizes are those before prune-heads, which only weights can tell." in printed
    assert "train 1: lora" in printed
