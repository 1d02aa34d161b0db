"""Sequences: what a batch holds, fixed orders, files of every kind, and the sentences of errors."""

import copy
import json
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sparsify.data import tokens as data_file
from sparsify.data.load import load_data
from sparsify.data.rows import gathered
from sparsify.data.sequences import (
    SentenceData,
    TensorData,
    TextData,
    batches,
    order,
    sample,
    split,
)
from sparsify.data.sources import parse_dataset
from sparsify.data.tokens import of_text
from sparsify.errors import DataError
from tests.data.texts import read_texts

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def tokenizer():
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    )


def test_text_blocks_follow_each_other_and_the_rest_is_left_out():
    text = TextData(torch.arange(11), 4)
    assert (len(text), text.length) == (2, 4)
    batch = text.batch([1, 0])
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_text_batches_do_not_share_memory_with_the_data():
    text = TextData(torch.arange(8), 4)
    text.batch([0])["input_ids"].zero_()
    assert text.batch([0])["input_ids"].tolist() == [[0, 1, 2, 3]]


def test_sentences_are_padded_to_the_longest_of_the_batch_and_cut(tokenizer):
    sentences = SentenceData(["one", "one two three", "five " * 20], tokenizer, 6)
    batch = sentences.batch([0, 1])
    assert batch["input_ids"].tolist() == [[1, 4, 2, 0, 0], [1, 4, 5, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert "labels" not in batch
    assert sentences.batch([2])["input_ids"].tolist() == [[1, 8, 8, 8, 8, 2]]
    assert sentences.length == 6


def test_tensors_are_taken_as_they_are():
    tensors = TensorData({"pixel_values": torch.arange(12.0).view(3, 4), "id": torch.arange(3)})
    assert (len(tensors), tensors.length) == (3, 4)
    batch = tensors.batch([2, 0])
    assert batch["pixel_values"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert batch["id"].tolist() == [2, 0]


def test_an_order_is_a_permutation_fixed_by_seed_and_epoch():
    assert sorted(order(50, 0, 0).tolist()) == list(range(50))
    assert torch.equal(order(50, 3, 2), order(50, 3, 2))
    drawn = {tuple(order(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9


def test_an_order_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    order(10, 5, 5)
    assert torch.equal(torch.rand(1), expected)


def test_a_sample_is_distinct_and_never_larger_than_the_data():
    text = TextData(torch.arange(40), 4)
    assert len(set(sample(text, 6, 1))) == 6
    assert sample(text, 6, 1) == sample(text, 6, 1)
    assert sample(text, 6, 1) != sample(text, 6, 2)
    assert sorted(sample(text, 99, 1)) == list(range(10))


def test_batches_keep_the_order_and_the_last_is_small():
    text = TextData(torch.arange(20), 4)
    firsts = [b["input_ids"][:, 0].tolist() for b in batches(text, [4, 0, 3], 2)]
    assert firsts == [[16, 0], [12]]


@pytest.mark.parametrize(("fraction", "sizes"), [(0.8, (8, 2)), (0.01, (1, 9)), (0.999, (9, 1))])
def test_a_split_is_disjoint_and_complete(fraction, sizes):
    text = TextData(torch.arange(40), 4)
    first, last = split(text, fraction)
    assert (len(first), len(last)) == sizes
    parts = [p.batch(range(len(p)))["input_ids"] for p in (first, last)]
    assert torch.equal(torch.cat(parts), text.batch(range(10))["input_ids"])
    assert (first.length, last.length) == (4, 4)
    with pytest.raises(IndexError, match=f"sequence {len(first)} of a part that has {len(first)}"):
        first.batch([len(first)])


def test_tokens_do_not_depend_on_the_size_of_the_pieces(tokenizer, monkeypatch):
    text = "one two\nthree\n\nfour five one\n" * 30
    whole = gathered(of_text([text], tokenizer)).ids
    monkeypatch.setattr(data_file, "_PIECE_CHARACTERS", 16)
    for parts in ([text], [text[start : start + 7] for start in range(0, len(text), 7)]):
        assert torch.equal(gathered(of_text(parts, tokenizer)).ids, whole)
    assert whole.tolist() == [4, 5, 6, 7, 8, 4] * 30


def test_a_long_text_gives_no_warning(tokenizer, caplog):
    fresh = copy.deepcopy(tokenizer)  # the library warns once for each tokenizer
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(gathered(of_text(["one " * 5000], fresh)).ids) == 5000
        assert caplog.text == ""
        fresh("one " * 5000)
        assert "longer than" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_every_kind_of_file_is_read_and_a_folder_in_the_order_of_paths(tmp_path, tokenizer):
    (tmp_path / "b.jsonl").write_text(
        '{"text": "three"}\n\n{"text": "four\\u2028", "id": 1}\n', encoding="utf-8"
    )
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.md").write_text("five", encoding="utf-8")
    (tmp_path / "skip.bin").write_bytes(b"\xff")
    assert read_texts(str(tmp_path)) == ["one\ntwo\n", "three", "four\u2028", "five"]
    text = load_data(str(tmp_path), tokenizer, 5)
    assert text.batch([0])["input_ids"].tolist() == [[4, 5, 6, 7, 8]]
    sentences = load_data(str(tmp_path), tokenizer, 5, kind="sentences")
    assert len(sentences) == 5


def test_a_parquet_file_is_read_by_its_text_column(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"id": [1, 2, 3], "text": ["one", None, "two"]}), path)
    assert read_texts(str(path)) == ["one", "two"]
    other = tmp_path / "other.parquet"
    parquet.write_table(arrow.table({"id": [1], "label": [0]}), other)
    with pytest.raises(DataError) as error:
        read_texts(str(other))
    assert str(error.value) == (
        f"'{other}' has no column 'text'; its columns are: id, label; "
        "name one behind '#', as in rows.csv#body"
    )


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("imdb", ("imdb", None, "train")),
        ("imdb:test", ("imdb", None, "test")),
        ("imdb:train[:10%]", ("imdb", None, "train[:10%]")),
        ("wikitext:wikitext-2-raw-v1", ("wikitext", "wikitext-2-raw-v1", "train")),
        ("wikitext:wikitext-2-raw-v1:test", ("wikitext", "wikitext-2-raw-v1", "test")),
        ("owner/name::odd", ("owner/name", None, "odd")),
    ],
)
def test_a_dataset_is_spelt_name_config_split(spec, parts):
    assert parse_dataset(spec) == parts


class _Table(dict):
    column_names = ("sentence", "label")


def test_a_dataset_goes_through_the_library(monkeypatch):
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return _Table(sentence=["one", "two"], label=[0, 1])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_texts("glue:sst2:test") == ["one", "two"]
    assert calls == [("glue", "sst2", "test")]


def _offline(name, config, split):
    raise ConnectionError("no route\nsecond line")


def _write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


ROW = json.dumps({"body": "one"}).encode()
FILES = [
    ("a.txt", b"one two", "the data '{}' has 2 tokens, fewer than one sequence of 8; "
     "use a shorter length or more text"),
    ("a.txt", b" \n ", "the data '{}' holds no text"),
    ("a.jsonl", b"", "the data '{}' holds no text"),
    ("a.txt", b"one \xff", "'{}' is not UTF-8 text (byte 4, line 1); convert it first"),
    ("a.jsonl", b"\n{one", "'{}' line 2 is not JSON: "
     "Expecting property name enclosed in double quotes"),
    ("a.jsonl", ROW, "'{}' line 1 has no string field 'text'; its fields are: body"),
    ("a.xml", b"one", "'{}' is not a kind of text we read; "
     "there are: .txt, .md, .rst, .jsonl, .csv, .tsv, .parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), FILES)
def test_a_bad_file_is_told_in_one_sentence(tmp_path, tokenizer, name, content, sentence):
    path = _write(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        load_data(path, tokenizer, 8)
    assert str(error.value) == sentence.format(path)


def test_a_damaged_parquet_file_is_told(tmp_path):
    pytest.importorskip("pyarrow")
    path = _write(tmp_path, "a.parquet", b"nothing")
    with pytest.raises(DataError) as error:
        read_texts(path)
    assert str(error.value).startswith(f"'{path}' is not a readable parquet file: ")


CALLS = [
    (lambda t: TextData(torch.arange(12), 128),
     "the data has 12 tokens, fewer than one sequence of 128; "
     "use a shorter length or more text"),
    (lambda t: TextData(torch.zeros(2, 2), 2),
     "the data must be one row of tokens, and has 2 dimensions"),
    (lambda t: TextData(torch.arange(12), 1), "a length of 1 is too short; use 2 or more tokens"),
    (lambda t: SentenceData([], t, 8), "the data has no sentence"),
    (lambda t: SentenceData(["one"], None, 8),
     "text needs a tokenizer, and the model has none; save one into the model folder"),
    (lambda t: load_data("a.txt", None, 8),
     "text needs a tokenizer, and the model has none; save one into the model folder"),
    (lambda t: load_data("nowhere/a.txt", t, 8),
     "the data 'nowhere/a.txt' does not exist; give a file, a folder or a dataset name"),
    (lambda t: load_data("./nowhere", t, 8),
     "the data './nowhere' does not exist; give a file, a folder or a dataset name"),
    (lambda t: load_data("a.txt", t, 8, kind="prose"),
     "there is no kind of data 'prose'; there are: text, sentences, chat"),
    (lambda t: load_data("a:b:c:d", t, 8),
     "'a:b:c:d' is no dataset; the form is name[:config][:split]"),
    (lambda t: TensorData({}), "the data has no sequence"),
    (lambda t: TensorData({"x": torch.zeros(0, 3)}), "the data has no sequence"),
    (lambda t: TensorData({"x": torch.zeros(2), "y": torch.zeros(3)}),
     "the tensors differ in their number of sequences: {'x': 2, 'y': 3}"),
    (lambda t: split(TextData(torch.arange(8), 4), 1.0), "a part of 1 is not between 0 and 1"),
    (lambda t: split(TextData(torch.arange(4), 4), 0.5),
     "the data has 1 sequence, too few to be split; bring more text"),
    (lambda t: list(batches(TextData(torch.arange(4), 4), [0], 0)),
     "a batch size of 0 is not possible; use 1 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), CALLS)
def test_bad_calls_are_told_in_one_sentence(tokenizer, call, sentence):
    with pytest.raises(DataError) as error:
        call(tokenizer)
    assert str(error.value) == sentence


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(DataError) as error:
        read_texts(str(tmp_path))
    assert (
        str(error.value)
        == f"the folder '{tmp_path}' has no .txt, .md, .rst, .jsonl, .csv, .tsv, .parquet file"
    )


def test_a_missing_library_and_a_missing_network_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as error:
        read_texts("wikitext:test")
    assert str(error.value) == (
        "no file or folder is called 'wikitext:test', and loading a dataset needs the package "
        "'datasets'; run: pip install \"sparsify-fx[data]\""
    )
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=_offline))
    with pytest.raises(DataError) as error:
        read_texts("wikitext:test")
    assert str(error.value) == (
        "the dataset 'wikitext:test' could not be loaded (ConnectionError: no route); "
        "check the name and the network, or give a local file"
    )
