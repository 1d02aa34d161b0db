"""Files of other encodings, and columns that hold no text: read right, or refused in a sentence."""

import json

import pytest

from sparsify.errors import DataError
from tests.data.texts import read_dialogues, read_texts

BOM = b"\xef\xbb\xbf"
DIALOGUE = {"prompt": "grüß", "response": "Gott"}


def refused(call, path):
    with pytest.raises(DataError) as caught:
        call(str(path))
    return str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    text, rows, dialogues = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl"))
    text.write_bytes(BOM + "grüß".encode())
    rows.write_bytes(BOM + b'{"text": "one"}\r\n{"text": "two"}')
    dialogues.write_bytes(BOM + json.dumps(DIALOGUE).encode())
    assert read_texts(str(text)) == ["grüß"]
    assert read_texts(str(rows)) == ["one", "two"]
    assert read_dialogues(str(dialogues)) == [DIALOGUE]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("a.txt", read_texts),
        ("a.md", read_texts),
        ("a.jsonl", read_texts),
        ("a.jsonl", read_dialogues),
    ],
)
def test_another_encoding_is_refused_where_it_begins(name, call, tmp_path):
    path = tmp_path / name
    row = {"text": "one", "prompt": "one", "response": "two"}
    path.write_bytes(
        json.dumps(row).encode()
        + b"\n"
        + json.dumps({**row, "text": "é"}, ensure_ascii=False).encode("latin-1")
    )
    byte = path.read_bytes().index(b"\xe9")
    sentence = f"'{path}' is not UTF-8 text (byte {byte}, line 2); convert it first"
    assert refused(call, path) == sentence
    path.write_bytes("one".encode("utf-16"))
    assert refused(call, path) == f"'{path}' is not UTF-8 text (byte 0, line 1); convert it first"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([["a", "b"]], "list"),
        ([{"a": 1}], "dict"),
        ([3], "int"),
        ([0.5], "float"),
        ([True], "bool"),
        ([b"a"], "bytes"),
    ],
)
def test_a_column_of_another_type_is_refused(values, kind, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [None, *values]}), path)
    assert refused(read_texts, path) == (
        f"column 'text' of '{path}' holds a {kind} in row 2, where text is wanted; make it one string a row"
    )
    if kind != "bytes":
        other = tmp_path / "a.jsonl"
        other.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": values[0]}))
        assert refused(read_texts, other) == f"'{other}' line 2 has no string field 'text'"


@pytest.mark.parametrize(
    "row", ['{"text": "half \\ud800"}', '{"text": "one", "n": ' + "9" * 5000 + "}"]
)
def test_a_row_that_no_program_can_hold_is_told_with_its_line(row, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + row)
    assert refused(read_texts, path).startswith(f"'{path}' line 2 cannot be read: ")
