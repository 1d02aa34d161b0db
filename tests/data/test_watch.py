"""Reading and exporting say how far they are, and do the same as when nobody asks."""

import json
from importlib import resources

import pytest
import torch

import sparsify
from sparsify.data import tokens as data_file
from sparsify.data.load import load_data
from sparsify.data.watch import unwatched, watched
from sparsify.pretrained.load import load_tokenizer

TEXT = "\n".join(f"This is line {number} of a text." for number in range(40))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(resources.files("sparsify") / "embedded"))


@pytest.fixture
def few(monkeypatch):
    """Small pieces, so that a small text has several."""
    monkeypatch.setattr(data_file, "_PIECE_CHARACTERS", 300)
    monkeypatch.setattr(data_file, "_TOGETHER", 16)


def told(path, kind, tokenizer):
    """What a watch hears of a source, and the ids of its sequences, those of one that nobody watches too."""
    heard = []
    data = load_data(str(path), tokenizer, 8, kind, watch=lambda *step: heard.append(step))
    same = load_data(str(path), tokenizer, 8, kind)
    ids = [found.batch(range(len(found)))["input_ids"] for found in (data, same)]
    return heard, *ids


def test_a_text_by_its_pieces(few, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    heard, ids, same = told(tmp_path / "a.txt", "text", tokenizer)
    total = len(TEXT)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert (len(heard), heard[0], heard[-1]) == (5, (0, total), (total, total))
    assert torch.equal(ids, same)


def test_sentences_some_at_a_time(few, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    heard, ids, same = told(tmp_path / "a.txt", "sentences", tokenizer)
    ends = [sum(map(len, TEXT.splitlines()[:count])) for count in (0, 16, 32, 40)]
    assert heard == [*((done, len(TEXT)) for done in ends[:3]), (ends[3], ends[3])]
    assert torch.equal(ids, same)
    monkeypatch.setattr(data_file, "_TOGETHER", 1000)
    assert torch.equal(told(tmp_path / "a.txt", "sentences", tokenizer)[1], ids)


def test_dialogues_some_at_a_time(few, tokenizer, tmp_path):
    rows = [json.dumps({"prompt": f"Ask {n}", "response": "So it is."}) for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    heard, ids, same = told(tmp_path / "a.jsonl", "chat", tokenizer)
    said = [len(f"Ask {n}So it is.") for n in range(20)]
    size = (tmp_path / "a.jsonl").stat().st_size
    assert heard == [(0, size), (sum(said[:16]), size), (sum(said), sum(said))]
    assert torch.equal(ids, same)


def test_every_domain_begins_anew(few, tokenizer, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(TEXT)
    heard = []
    spec = {name: str(tmp_path / f"{name}.txt") for name in "ab"}
    load_data(spec, tokenizer, 8, watch=lambda *step: heard.append(step))
    assert heard == heard[:5] * 2
    assert (heard[0], heard[4]) == ((0, len(TEXT)), (len(TEXT), len(TEXT)))


def test_nothing_has_no_steps():
    heard = []
    assert list(watched([], lambda *step: heard.append(step), total=0)) == []
    assert heard == [(0, 0)]
    assert list(watched("abc", unwatched, 2, total=3)) == [["a", "b"], ["c"]]


def test_an_export_tells_four_steps_a_format(traced, tmp_path):
    heard = []

    class Progress:
        def start(self, title, total):
            heard.append((title, total))

        def rename(self, title):
            heard.append(title)

        def advance(self, **figures):
            heard.append(1)

    formats = ["safetensors", "huggingface"]
    sparsify.export(traced("llama"), tmp_path, formats, progress=Progress())
    assert heard == [("exporting", 8), "safetensors", 1, 1, 1, 1, "huggingface", 1, 1, 1, 1]
