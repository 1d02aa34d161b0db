"""What is written travels: nothing in it says where it was made, and nothing is read from there again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import metadata_load

import exporters
import sparsify
from sparsify.disk.digests import of_json

PIPELINE = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
MASKS = "choose-masks{score=wanda pattern=2:4}"
FORMATS = [item.name for item in exporters.ALL]


@pytest.fixture(scope="module")
def made(model, text, cli, tmp_path_factory):
    """The folders of a run, a stream and a dump, all named by absolute paths; the source is gone since."""
    place = tmp_path_factory.mktemp("places")
    source = shutil.copytree(model, place / "source")
    (source / "LICENSE").write_text("terms")
    (source / "README.md").write_text("---\nlicense: other\nlicense_link: LICENSE\n---\n")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": str(source)}))
    words = ["--model", source, "--data", f"web={text}", "--length", 16]
    run = [*words, "--pipeline", PIPELINE, "--to", ",".join(FORMATS), "--dump", place / "dump"]
    assert cli("run", *run, "--out", place / "out", "--json", place / "run.json")[0] == 0
    stream = ["--masks", MASKS, "--samples", 4, "--out", place / "stream", "--dtype", "float32"]
    assert cli("stream", *words, *stream)[0] == 0
    assert cli("eval", place / "out", "--data", text, "--length", 32, "--limit", 2)[0] == 0
    bench = ["--against", source, "--tokens", "1", "--rounds", 1]
    assert cli("bench", place / "out" / "onnx", *bench)[0] == 0
    assert cli("report", place / "out")[0] == 0
    shutil.rmtree(source)
    return place


def holding(folder, word):
    """The files below a folder that hold a word."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 3
    return [str(p.relative_to(folder)) for p in files if word.encode() in p.read_bytes()]


def test_only_run_yaml_says_where_it_was_made(made, text):
    assert holding(made, str(made)) == ["out/run.yaml"]
    assert holding(made, str(text.parent)) == ["out/run.yaml"]
    for place in (Path(sparsify.__file__).parents[1], Path(torch.__file__).parents[1]):
        assert holding(made, str(place)) == []
    said = json.loads((made / "out" / "run.json").read_text())
    assert (said["model"], said["data"]) == ("source", "web=text.txt")
    said = json.loads((made / "stream" / "sparsify.json").read_text())
    assert (said["model"], said["data"]) == ("source", "web=text.txt")
    source = json.loads((made / "out" / "safetensors" / "program.json").read_text())["source"]
    assert source["config"]["_name_or_path"] == "source"


def test_a_program_that_was_moved_exports_with_all_that_belongs_to_it(made, tmp_path, cli):
    moved = shutil.copytree(made / "out" / "safetensors", tmp_path / "moved")
    assert cli("export", moved, "--to", ",".join(FORMATS), "--out", tmp_path / "new")[0] == 0
    for form in FORMATS:
        new, first = tmp_path / "new" / form, made / "out" / form
        names = {path.name for path in first.iterdir()} - {"report.html", "bench.json"}
        assert {"tokenizer.json", "README.md", "LICENSE"} <= names
        assert {path.name for path in new.iterdir()} == names
        for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
            assert (new / name).read_bytes() == (first / name).read_bytes()
        head = metadata_load(new / "README.md")
        assert (head["license"], head["license_link"]) == ("other", "LICENSE")
        assert "base_model" not in head
    assert holding(tmp_path / "new", str(made)) == []


@pytest.mark.parametrize(("name", "short"), [("/home/me/one", "one"), ("org/one", "org/one")])
def test_a_program_of_an_earlier_version_loads(name, short, made, tmp_path):
    old = shutil.copytree(made / "out" / "safetensors", tmp_path / "old")
    about = json.loads((old / "program.json").read_text())
    del about["source"]["origin"]
    about["source"]["config"]["_name_or_path"] = name
    rest = {key: value for key, value in about.items() if key != "hashes"}
    about["hashes"]["program.json"] = of_json(rest)
    (old / "program.json").write_text(json.dumps(about))
    program = sparsify.load(old)
    assert program.source.config["_name_or_path"] == short
    assert program.source.origin == ({"base_model": name} if name == short else {})
