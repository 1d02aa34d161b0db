"""What stands in code fences: the pass that is taught is run, Python compiles and names what there is."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from sparsify.engine import registry
from sparsify.engine.pipeline import parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OURS = ("sparsify", "passes", "exporters")


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_about_passes_shows_the_files_of_the_package():
    page, package = ROOT / "docs" / "writing-a-pass.md", ROOT / "examples" / "plugin"
    files = [
        package / "sparsify_gates" / name
        for name in re.findall(r"`sparsify_gates/(\w+\.py)`", page.read_text())
    ]
    assert fences(page, "python") == [path.read_text() for path in files]
    assert {path.name for path in files} | {"__init__.py"} == {
        path.name for path in (package / "sparsify_gates").glob("*.py")
    }
    (entries,) = fences(page, "toml")
    assert entries in (package / "pyproject.toml").read_text()


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
        "sheared.md",
        "recipes.md",
    )
