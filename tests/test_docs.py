"""Pages that come from the code are fresh, links lead somewhere, and pipelines in the text parse."""

import importlib.util
import re
from pathlib import Path

import pytest

import passes
from sparsify.engine.pipeline import parse
from sparsify.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    ["docs/passes.md", "docs/recipes.md", "docs/families.md", "sparsify/text/catalogue.json"],
)
def test_generated_pages_are_fresh(name):
    assert (ROOT / name).read_text() == generator().PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_table_of_verbs_is_complete():
    verbs = {item.name.partition("-")[0] for item in passes.ALL}
    first = re.findall(r"^\| ([a-z][^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = {word.strip().removesuffix("-x") for cell in first for word in cell.split(",")}
    assert verbs <= named


def test_recipes_parse_and_print_themselves():
    for item in RECIPES:
        pipeline = parse(item.text)
        assert str(parse(str(pipeline))) == str(pipeline)


def test_every_recipe_has_its_own_name():
    names = [item.name for item in RECIPES]
    assert len(set(names)) == len(names)


def test_the_pipeline_of_the_readme_parses():
    text = (ROOT / "README.md").read_text()
    quoted = re.search(r"sparsify\.parse\(\n(.*?)\n\)", text, re.DOTALL).group(1)
    assert len(parse("".join(re.findall(r'"([^"]*)"', quoted))).passes) == 8


def test_every_decision_is_numbered_without_gaps():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
