"""The site of the documentation builds without a warning, holds every page, and asks for nothing outside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def pages(entry):
    """The paths of a navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [path for part in parts for path in pages(part)]


def test_every_page_has_one_place_in_the_navigation():
    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")), (
        "give the page a line under `nav` in mkdocs.yml"
    )


def test_the_page_of_decisions_lists_them_all():
    listed = re.findall(r"\]\(decisions/([^)]+)\)", (DOCS / "decisions.md").read_text())
    assert listed == sorted(path.name for path in (DOCS / "decisions").glob("*.md"))


def built(folder, *, config=ROOT / "mkdocs.yml"):
    # Not `--quiet`: it drops warnings before `--strict` counts them.
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*words, "--config-file", str(config), "--site-dir", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built; left out where mkdocs-material is not installed."""
    pytest.importorskip("mkdocs", reason="needs mkdocs-material, of the extra 'docs'")
    folder = tmp_path_factory.mktemp("site") / "built"
    done = built(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_files_outside_docs_that_pages_link_to_are_in_the_site(site):
    page = (site / "dpf.html").read_text()
    (link,) = re.findall(r'href="([^"]*adaptive_with_trainer\.py)"', page)
    copy = site / link
    assert copy.read_bytes() == (ROOT / "examples" / "adaptive_with_trainer.py").read_bytes()
    (link,) = re.findall(r'href="([^"]*sparsify/ir/[^"]*)"', (site / "index.html").read_text())
    assert "<article" in (site / link).read_text()  # a page, as the README is one


def test_links_of_copied_pages_lead_back_into_the_site(site):
    page = site / "repository" / "CONTRIBUTING.html"
    (link,) = set(re.findall(r'href="([^"]*writing-a-pass\.html)"', page.read_text()))
    assert (page.parent / link).resolve() == (site / "writing-a-pass.html").resolve()


def test_pages_ask_for_nothing_outside(site):
    for page in site.rglob("*.html"):
        found = re.findall(r"<(?:script|link|img|iframe)\b[^>]*https?://[^>]*>", page.read_text())
        assert not found, page


def test_a_broken_link_fails_the_build(site, tmp_path):
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[nowhere](nowhere.md)\n")
    changed = {"hooks": [], "nav": ["index.md"], "theme": {"name": "mkdocs"}}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**config, **changed}))
    done = built(tmp_path / "site", config=tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
