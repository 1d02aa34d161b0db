"""The text beside a program: shown while it is the program's own, told apart when it is not."""

import json

import pytest

import sparsify
from sparsify.disk.program_text import head_of, text_of
from sparsify.errors import DataError
from sparsify.ir.text import header, to_text


@pytest.fixture
def saved(tmp_path, traced):
    program = sparsify.parse("insert-lora{rank=2} | insert-masks").run(traced("llama"))
    return program, sparsify.save(program, tmp_path / "out" / "safetensors")


def test_the_text_is_that_of_the_program(saved, cli, tmp_path):
    program, folder = saved
    whole = f"{header(program)}\n{to_text(program)}"
    assert text_of(folder) == text_of(folder.parent) == text_of(folder / "program.txt") == whole
    assert head_of(whole) == ("LlamaForCausalLM", ["lora", "mask.weights"])
    assert cli("show", folder, "--json", tmp_path / "light.json") == (0, whole, "")
    (folder / "program.txt").unlink()
    assert text_of(folder) is None
    code, printed, _ = cli("show", folder, "--json", tmp_path / "heavy.json")
    assert (code, printed) == (0, whole)
    light, heavy = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("light", "heavy"))
    assert light == heavy


def test_a_text_that_was_changed_is_refused(saved, cli):
    _, folder = saved
    text = (folder / "program.txt").read_text()
    (folder / "program.txt").write_text(text.replace("linear", "nothing", 1))
    with pytest.raises(DataError, match=r"program.txt' is not what was written with the program"):
        text_of(folder)
    code, printed, _ = cli("show", folder, "--no-verify")  # which reads the program itself
    assert (code, printed) == (0, text)


def test_beside_another_document_it_is_not_asked(saved):
    _, folder = saved
    about = json.loads((folder / "program.json").read_text())
    (folder / "program.json").write_text(json.dumps({**about, "pipeline": ["other"]}))
    assert text_of(folder) is None
    del about["hashes"]["program.txt"]  # as an earlier version wrote it
    (folder / "program.json").write_text(json.dumps(about))
    assert text_of(folder) is None


def test_what_is_no_text_of_a_program(tmp_path, cli):
    (tmp_path / "a.txt").write_text("words\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(
        DataError, match="is no program as text, which '--dump' writes; name a model"
    ):
        text_of(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"b.txt' is no text"):
        text_of(tmp_path / "b.txt")
    assert text_of(tmp_path) is None
    assert text_of(tmp_path / "c.txt") is None
    said = "a.txt' is a text; --pipeline, --axes and --cost are of models"
    for option in (["--axes"], ["--cost"], ["--pipeline", "insert-masks"]):
        assert said in cli("show", tmp_path / "a.txt", *option)[2]
