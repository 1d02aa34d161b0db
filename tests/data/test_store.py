"""Tokens in files that are read in place: what is in memory otherwise, made once, refused when damaged."""

import copy
import gzip
import json
import tracemalloc
from importlib import resources

import pytest
import torch

from sparsify.data import tokens as tokens_file
from sparsify.data.domains import DomainData
from sparsify.data.load import load_data
from sparsify.errors import DataError
from sparsify.pretrained.load import load_tokenizer

LINES = [f"This is line {number} of a text, and it goes on." for number in range(200)]
ROWS = [{"prompt": f"Ask {n}", "response": f"So it is, {n} times."} for n in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(resources.files("sparsify") / "embedded"))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES[:50]))
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress("\n".join(LINES[50:]).encode()))
    return tmp_path


def whole(data):
    parts = [p for d in data.domains for p in d.parts] if isinstance(data, DomainData) else [data]
    return [part.batch(range(len(part))) for part in parts]


class Broken:
    """A tokenizer that says what it is and cannot be used."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **kwargs):
        raise AssertionError("tokenised once more")


def hidden(tokenizer):
    """`Broken`, under the name of the class that it stands for."""
    return type(type(tokenizer).__name__, (Broken,), {})(tokenizer)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("a.txt,b.jsonl", "text"),
        ("d.txt.gz", "text"),
        ("a.txt", "sentences"),
        ("c.jsonl", "chat"),
        ("one=a.txt:0.7,two=b.jsonl:0.3", "text"),
    ],
)
def test_what_lies_in_files_is_what_is_in_memory_otherwise(
    spec, kind, source, tokenizer, monkeypatch
):
    monkeypatch.chdir(source)
    wanted = whole(load_data(spec, tokenizer, 16, kind))
    for given in (tokenizer, hidden(tokenizer)):  # the second time nothing is tokenised
        found = whole(load_data(spec, given, 16, kind, store=source / "tokens"))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(source.glob("tokens/*.partial"))


def test_other_text_tokens_or_kinds_lie_elsewhere(source, tokenizer):
    def folders(tokenizer=tokenizer, length=16, kind="text"):
        load_data(str(source / "a.txt"), tokenizer, length, kind, store=source / "tokens")
        return {path.name for path in (source / "tokens").iterdir()}

    first = folders()
    assert folders(length=32) == first  # a running text is cut later
    more = folders(kind="sentences")
    assert len(more) == 2
    assert len(folders(length=32, kind="sentences")) == 3
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["goes"])
    assert len(folders(tokenizer=other)) == 4
    with (source / "a.txt").open("a") as file:
        file.write(" more")
    assert len(folders()) == 5


def test_tokens_that_are_not_whole_are_refused(source, tokenizer):
    def load():
        return load_data(str(source / "a.txt"), tokenizer, 16, store=source / "tokens")

    load()
    (folder,) = (source / "tokens").iterdir()
    ids = folder / "ids"
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(
        DataError, match="are not whole; delete that folder, and they are made again"
    ):
        load()


def test_a_fault_in_the_middle_leaves_no_tokens(source, tokenizer):
    (source / "a.txt").write_bytes("\n".join(LINES).encode() + b"\xff")
    with pytest.raises(DataError, match=r"is not UTF-8 text \(byte \d+, line 200\)"):
        load_data(str(source / "a.txt"), tokenizer, 16, store=source / "tokens")
    assert not list((source / "tokens").iterdir())


def test_memory_does_not_grow_with_the_text(source, tokenizer, monkeypatch):
    monkeypatch.setattr(tokens_file, "_PIECE_CHARACTERS", 1 << 14)
    monkeypatch.setattr("sparsify.data.files._CHUNK", 1 << 14)
    peaks = []
    for times in (10, 80):
        (source / "a.txt").write_text("\n".join(LINES * times))
        tracemalloc.start()
        load_data(str(source / "a.txt"), tokenizer, 16, store=source / "tokens")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
