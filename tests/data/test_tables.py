"""Documents in rows: a column by name, from every kind of table, compressed or not."""

import csv
import gzip
import json
import sys

import pytest

from sparsify.data.sources import split_column
from sparsify.errors import DataError
from tests.data.texts import read_dialogues, read_texts

BODIES = ["one, two", 'three\n"four"', "f\u00fcnf"]
BEHIND = "name one behind '#', as in rows.csv#body"
ROWS = [{"id": n, "text": "else", "body": body} for n, body in enumerate(BODIES)]


def table(path):
    """The rows as a file of the kind that its name says."""
    kind = path.name.split(".")[1]
    if kind == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.Table.from_pylist(ROWS), sink)
        content = sink.getvalue().to_pybytes()
    else:
        plain = path.parent / "plain"
        with plain.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            rows.writeheader()
            rows.writerows(ROWS)
        content = plain.read_bytes()
        plain.unlink()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_column_by_its_name(kind, packed, tmp_path):
    path = table(tmp_path / f"rows.{kind}{packed}")
    assert read_texts(f"{path}#body") == BODIES
    assert read_texts(str(path)) == ["else"] * 3
    with pytest.raises(DataError, match=r"(column|field) 'nothing'.* are: id, text, body"):
        read_texts(f"{path}#nothing")


def test_the_column_of_all_tables_of_a_folder(tmp_path):
    table(tmp_path / "a.csv")
    table(tmp_path / "b.jsonl.gz")
    assert read_texts(f"{tmp_path}#body") == BODIES * 2
    (tmp_path / "c.txt").write_text("plain")
    with pytest.raises(DataError) as error:
        read_texts(f"{tmp_path}#body")
    assert str(error.value) == (
        f"'{tmp_path}/c.txt' is plain text and has no column 'body'; leave '#body' out"
    )


def test_a_path_with_the_mark_in_its_name_is_that_path(tmp_path):
    (tmp_path / "a#b.txt").write_text("text")
    assert read_texts(f"{tmp_path}/a#b.txt") == ["text"]
    assert split_column("a#b.csv#c") == ("a#b.csv", "c")
    for whole in ("a.csv", "#a", "a#"):
        assert split_column(whole) == (whole, None)


def test_the_column_of_a_dataset(monkeypatch):
    class Library:
        @staticmethod
        def load_dataset(name, config, split):
            assert (name, config, split) == ("owner/set", "de", "test")
            return Rows({"text": ["no"], "body": ["yes", None]})

    class Rows(dict):
        column_names = ("text", "body")

    monkeypatch.setitem(sys.modules, "datasets", Library)
    assert read_texts("owner/set:de:test#body") == ["yes"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'text\n"open', "'{}' is not readable as .csv: unexpected end of data"),
        (b"a;b\n1;2\n", "'{}' has no column 'text'; its columns are: a;b; " + BEHIND),
        (b"", "'{}' has no column 'text'; its columns are: ; " + BEHIND),
        (b"text\n\n", "the data '{}' holds no text"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told(content, sentence, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_texts(str(path))
    assert str(error.value) == sentence.format(path)


def test_a_field_may_be_long_and_a_row_short(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("id,text\n1," + "x" * 200_000 + "\n2\n3,y,z\n")
    assert [len(text) for text in read_texts(str(tmp_path / "a.csv"))] == [200_000, 1]
    assert csv.field_size_limit() == before


def test_compressed_dialogues(tmp_path):
    row = json.dumps({"prompt": "Ask", "response": "So"})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    (tmp_path / "b.jsonl").write_text(row)
    assert len(read_dialogues(str(tmp_path / "a.jsonl.gz"))) == 1
    assert len(read_dialogues(str(tmp_path))) == 2
