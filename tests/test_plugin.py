"""The example package, installed as users do: a pass, a feature, an op and a recipe from elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsify
from passes.fold_lora import FoldLora
from sparsify import Context, export, load, parse, save
from sparsify.engine import registry
from sparsify.engine.remedies import _takers, remedies
from sparsify.errors import ExportError, PipelineError
from sparsify.ir import tensor_names
from sparsify.ir.axes.groups import groups
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features import catalogue
from sparsify.ir.ops import registry as ops
from sparsify.ir.text import to_text
from sparsify.plugins import plugins
from sparsify.recipes import recipe, recipes
from sparsify.tensors.precision import largest_difference

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "examples" / "plugin"


def forget():
    """Look for packages anew."""
    for cached in (plugins, registry.passes, registry.exporters, _takers):
        cached.cache_clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the package is installed."""
    found = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    built = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PACKAGE, source, ignore=built)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", found, source], check=True)
    return found


@pytest.fixture
def installed(place, monkeypatch):
    """The package where Python finds it; afterwards it is as if it had never been there."""
    held = (tensor_names._SUFFIXES, catalogue._HELD, ops._BY_NAME, ops._BY_FUNCTION)
    before = [dict(known) for known in held]
    monkeypatch.syspath_prepend(place)
    forget()
    yield place
    for known, earlier in zip(held, before, strict=True):
        known.clear()
        known.update(earlier)
    for name in [name for name in sys.modules if name.startswith("sparsify_gates")]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


def gated(program, low=0.5):
    """A program with gates between `low` and 1, and what it gave before they moved."""
    parse("insert-gates").run(program, Context())
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith("_gate"):
                value.copy_(torch.linspace(low, 1.0, value.numel()))
    return program


@pytest.mark.parametrize("family", ["block", "gpt2"])
def test_its_passes_keep_the_laws(family, installed, traced):
    program = traced(family)
    text, outputs = to_text(program), program.run()
    parse("insert-gates").run(program, Context())
    assert program.features == {"gates"}
    assert "gates.gate" in to_text(program)
    assert all(torch.equal(a, b) for a, b in zip(outputs, program.run(), strict=True))
    with pytest.raises(PipelineError, match="would add"):
        parse("insert-gates").check(program, Context())
    program = gated(traced(family))
    moved = program.run()
    parse("fold-gates").run(program, Context())
    assert largest_difference(outputs, moved) > 1e-2
    assert largest_difference(moved, program.run()) <= 1e-5
    assert to_text(program) == text


def test_channels_are_pruned_with_gates_on_them(installed, traced):
    program = gated(traced("llama"))
    sizes = {
        group.size
        for group in groups(analyse(program))
        if group.kind == "channels" and group.prunable
    }
    assert sizes == {
        group.size for group in groups(analyse(traced("llama"))) if group.kind == "channels"
    }
    choice = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    parse(choice).run(program, Context())
    masked = program.run()
    parse("prune-channels").run(program, Context())
    assert largest_difference(masked, program.run()) <= 1e-5
    (size,) = sizes
    widths = {p.numel() for path, p in program.tensors() if path.endswith("down_proj.weight_gate")}
    assert widths == {size // 2}


def test_a_saved_program_holds_the_op_and_the_feature(installed, traced, tmp_path):
    program = gated(traced("llama"))
    save(program, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert to_text(again) == to_text(program)
    assert all(torch.equal(a, b) for a, b in zip(program.run(), again.run(), strict=True))


def test_formats_take_what_is_carried_and_name_the_pass_for_the_rest(installed, traced, tmp_path):
    program = gated(traced("llama"))
    assert set(export(program, tmp_path, ["onnx", "onnx-decode"])) == {"onnx", "onnx-decode"}
    with pytest.raises(ExportError) as caught:
        export(program, tmp_path, ["huggingface"])
    assert str(caught.value).startswith(
        "huggingface cannot hold gates; add fold-gates to the pipeline"
    )
    assert remedies(["gates"]) == ["fold-gates"]


def test_its_recipe_and_passes_are_known_to_a_fresh_command(installed):
    assert [item.name for item in recipes()][-1] == "gated"
    assert parse(recipe("gated").text).features_after(frozenset()) == frozenset()
    words = [sys.executable, "-m", "sparsify", "recipes", "gated"]
    told = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": f"{installed}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (told.returncode, " ".join(told.stdout.split())) == (0, recipe("gated").text)


class Point:
    """An entry point as far as it is looked at."""

    def __init__(self, name, made):
        self.name, self.value, self.group, self.dist, self.made = (
            name,
            "somewhere:X",
            "",
            None,
            made,
        )

    def load(self):
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            ImportError("no module named x"),
            "the package 'somewhere:X' offers 'mine' in sparsify.passes, but 'somewhere:X' cannot be "
            "imported (no module named x); mend or remove the package",
        ),
        (int, "<class 'int'> is offered as sparsify.passes, but is no Pass"),
        (
            FoldLora,
            "passes.fold_lora offers 'fold-lora', a name that passes.fold_lora has; remove one of the "
            "packages",
        ),
    ],
)
def test_what_is_wrong_with_a_package_is_said(made, sentence, monkeypatch):
    point = Point("mine", made)
    point.group = "sparsify.passes"
    monkeypatch.setattr("sparsify.plugins.entry_points", lambda group: [point])
    forget()
    try:
        with pytest.raises(PipelineError) as caught:
            registry.passes()
    finally:
        forget()
    assert str(caught.value) == sentence


def test_the_faces_that_a_package_needs_are_public():
    for name in ("Op", "register_op", "Feature", "register_feature", "Context", "Program"):
        assert hasattr(sparsify, name)
