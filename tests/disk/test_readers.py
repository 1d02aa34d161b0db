"""JSON files of ours that are damaged, foreign or no files: each one sentence, naming the file."""

import os

import pytest

from sparsify.disk.files import notes, read_json, read_mapping, reading
from sparsify.errors import DataError
from sparsify.pretrained.headers import headers_in
from sparsify.report.record import record
from sparsify.runtime.library_beside import add_kernels


def sentence(call, *args):
    with pytest.raises(DataError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(("text", "why"), [
    (b"", "Expecting value: line 1 column 1 (char 0)"),
    (b"\xff\xfe{}", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    (b"[" * 200_000, "it nests too deeply"),
    (b'{"a":' * 200_000, "it nests too deeply"),
])  # fmt: skip
def test_damaged_json(text, why, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    assert sentence(read_json, path) == f"'{path}' is damaged or not ours: {why}"


def test_json_of_a_size_that_nothing_of_ours_has(tmp_path):
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, 1 << 40)
    assert sentence(read_json, path) == (
        f"'{path}' has 1,099,511,627,776 bytes; no file of its kind has so many"
    )


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType")])
def test_what_is_no_mapping(text, kind, tmp_path):
    path = tmp_path / "sparsify.json"
    path.write_text(text)
    wanted = f"'{path}' is damaged or not ours: it holds a {kind}"
    assert sentence(read_mapping, path) == wanted
    assert sentence(notes, tmp_path) == wanted


def test_entries_that_are_missing(tmp_path):
    path = tmp_path / "state.json"
    with pytest.raises(DataError) as caught, reading(path):
        int({}["done"])
    assert str(caught.value) == f"'{path}' is damaged or not ours: KeyError('done')"


def test_notes_of_another_kind_are_no_notes(tmp_path):
    (tmp_path / "sparsify.json").write_text('{"notes": 3}')
    assert notes(tmp_path) == []


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_shards_outside_their_folder(name, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(f'{{"weight_map": {{"w": "{name}"}}}}')
    assert (
        sentence(headers_in, tmp_path) == f"'{path}' names '{name}', which is no file of its folder"
    )
    path.write_text('{"weight_map": 3}')
    assert sentence(headers_in, tmp_path).startswith(f"'{path}' is damaged or not ours: ")


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "x.json").mkdir()
    assert sentence(read_json, tmp_path / "x.json") == f"'{tmp_path / 'x.json'}' is no plain file"


def test_a_pipe_in_place_of_a_model(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    assert sentence(add_kernels, tmp_path).startswith(f"'{tmp_path}' holds no packed model.onnx")


def test_measurements_that_are_damaged(tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "eval.json").write_text("[]")
    text = sentence(record, tmp_path, "bench", {})
    assert text == f"'{tmp_path / 'eval.json'}' is damaged or not ours: it holds a list"
