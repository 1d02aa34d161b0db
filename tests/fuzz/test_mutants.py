"""A few hundred mutants of saved programs; `make fuzz` makes as many as there is time for."""

import pytest

from sparsify.ir.storage.folder import load
from tests.fuzz.bases import small
from tests.fuzz.examine import examine, figures
from tests.fuzz.mutate import Mutator


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return small(tmp_path_factory.mktemp("bases"))


def test_mutants_are_refused_or_run(bases, tmp_path):
    sentinel = tmp_path / "sentinel"
    mutator = Mutator(bases, tmp_path / "mutant", sentinel)
    counts, bad, _ = figures(mutator, range(250), sentinel)
    assert bad == []
    assert counts["refused"] > 150
    assert counts["loaded"] > 0


def test_the_watch_sees_code_run(bases, tmp_path, monkeypatch):
    """The harness itself: what it must catch, it catches."""
    sentinel = tmp_path / "sentinel"

    def hostile(folder):
        sentinel.write_text("here")
        return load(folder)

    monkeypatch.setattr("tests.fuzz.examine.load", hostile)
    outcome, word = examine(bases[0], sentinel)
    assert outcome == "code"
    assert word.startswith("open ")
    monkeypatch.setattr("tests.fuzz.examine.load", lambda folder: exec("while True: pass"))
    monkeypatch.setattr("tests.fuzz.examine.SECONDS", 0.2)
    assert examine(bases[0], sentinel) == ("hang", "")


def test_the_same_seed_is_the_same_mutant(bases, tmp_path):
    mutants = []
    for name in "ab":
        folder = Mutator(bases, tmp_path / name, tmp_path / "sentinel").write(7)
        mutants.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert mutants[0] == mutants[1]
