"""What stands in code fences: the pass that is taught is run, Python compiles and names what there is."""

import ast
import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import passes
from sparsify.engine import registry
from sparsify.engine.contract import Context, Pass
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.ir import tensor_names as names
from sparsify.ir.text import to_text
from sparsify.tensors.precision import largest_difference

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OURS = ("sparsify", "passes", "exporters")


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def taught(monkeypatch):
    """The passes of the page in the catalogue, as its reader would put them there."""
    found = []
    for number, code in enumerate(fences(ROOT / "docs" / "writing-a-pass.md", "python")):
        module = types.ModuleType(f"taught_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), vars(module))
        kinds = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Pass)]
        found += [kind for kind in kinds if kind is not Pass]
    monkeypatch.setattr(passes, "ALL", (*passes.ALL, *found))
    monkeypatch.setitem(names._SUFFIXES, "_gate", "gates")
    registry.passes.cache_clear()
    yield found
    registry.passes.cache_clear()


@pytest.mark.parametrize("family", ["block", "gpt2"])
def test_the_pass_that_is_taught_keeps_the_laws(family, taught, traced):
    assert [item.name for item in taught] == ["insert-gates", "fold-gates"]
    program = traced(family)
    text, outputs = to_text(program), program.run()
    parse("insert-gates").run(program, Context())
    assert program.features == {"gates"}
    assert all(torch.equal(a, b) for a, b in zip(outputs, program.run(), strict=True))
    with pytest.raises(PipelineError, match="would add"):
        parse("insert-gates").check(program, Context())
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith("_gate"):
                value.copy_(torch.linspace(0.5, 1.5, value.numel()))
    gated = program.run()
    parse("fold-gates").run(program, Context())
    assert largest_difference(outputs, gated) > 1e-2
    assert largest_difference(gated, program.run()) <= 1e-5
    assert to_text(program) == text
    with pytest.raises(PipelineError, match="needs"):
        parse("fold-gates").check(program, Context())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_names_what_there_is(page):
    for code in fences(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, item.name) for item in node.names), node.module
            here = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if here and node.value.id == "sparsify":
                assert hasattr(importlib.import_module("sparsify"), node.attr), node.attr


def pipelines(page):
    """Fenced and quoted pipelines of a page, `...` for parts that are left out taken away."""
    inline = re.findall(r"`([a-z]+-[a-z]+\{[^`]*\}[^`]*|[^`\n]* \| [^`\n]*)`", page.read_text())
    for text in (*fences(page, ""), *inline):
        text = re.sub(r"^\s*\.\.\. \||\| \.\.\.\s*$", "", text.strip(), flags=re.MULTILINE)
        lines = [line for line in text.splitlines() if not line.strip().startswith("...")]
        text = " ".join(lines)
        first = re.match(r"\s*([a-z-]+)", text)
        if (
            first
            and first[1] in registry.passes()
            and "..." not in text
            and not re.search(r"\{[a-z]+\}", text)
        ):
            yield text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pipelines_parse(page):
    found = list(pipelines(page))
    for text in found:
        pipeline = parse(text)
        assert parse(str(pipeline)) == pipeline
    assert found or page.name not in (
        "adaptive.md",
        "omission.md",
        "slim.md",
        "losa.md",
        "recipes.md",
    )
