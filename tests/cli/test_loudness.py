"""`--quiet` and `--verbose`, of the whole command line."""

import logging

import pytest

MASKS = "insert-masks | choose-masks{sparsity=0.5} | fold-masks"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def words(model, text, tmp_path):
    """A run that warns."""
    start = ["run", "--model", model, "--pipeline", MASKS, "--out", tmp_path / "out"]
    return [*start, "--data", text, "--length", 200]


def test_quiet_prints_errors_alone(words, cli, tmp_path):
    assert cli("--quiet", *words) == (0, "", "")
    said = (
        f"error: the folder '{tmp_path / 'out'}' is not empty; choose another or give --overwrite\n"
    )
    assert cli("--quiet", *words) == (1, "", said)
    code, printed, _ = cli("--quiet", "show", tmp_path / "out")  # printing is what it is asked for
    assert (code, NAME in printed) == (0, True)


def test_verbose_says_what_every_pass_did(words, cli):
    code, printed, error = cli("--verbose", *words)
    assert code == 0
    assert "choose-masks" in printed
    assert error.count("200 tokens are longer than the 128 that the model states") == 1
    lines = [line for line in error.splitlines() if line.startswith("pass ")]
    assert [line.partition(",")[0] for line in lines] == [f"pass {n} of 3" for n in (1, 2, 3)]
    assert lines[1].startswith("pass 2 of 3, 'choose-masks{sparsity=0.5}': 14 places in ")
    assert logging.getLogger("sparsify").handlers == []
    assert logging.getLogger("sparsify").level == logging.NOTSET


def test_both_exclude_each_other(cli):
    said = "error: --quiet and --verbose exclude each other; give one of them\n"
    assert cli("--quiet", "--verbose", "passes") == (1, "", said)
