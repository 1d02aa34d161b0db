"""A hook of mkdocs: links that leave docs/ lead to copies of those files in the site.

A page may say `[text](../examples/x.py)`, which works where the repository is read. The site gets that file
as `repository/examples/x.py`, the link leads there, and what such a file links to follows it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"\]\(([^)#\s]+)")
_COPIES = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, then what those link to."""
    waiting = [page.src_uri for page in files.documentation_pages()]
    while waiting:
        source = waiting.pop()
        text = (ROOT / _in_repository(source)).read_text(encoding="utf-8")
        for link in _LINK.findall(text):
            target = _target(source, link)
            if target and target.startswith(_COPIES) and target not in files.src_uris:
                path = str(ROOT / _in_repository(target))
                files.append(File.generated(config, target, abs_src_path=path))
                if target.endswith(".md"):
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write links from or to outside docs/ as the site has them."""
    source = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        return f"]({posixpath.relpath(target, posixpath.dirname(source))}" if target else match[0]

    return _LINK.sub(moved, markdown)


def _in_repository(source: str) -> str:
    """A path of the site as one of the repository."""
    return source.removeprefix(_COPIES) if source.startswith(_COPIES) else f"docs/{source}"


def _target(source: str, link: str) -> str | None:
    """The path in the site of the file that a page links to; None when that is no file of ours."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(source)), link))
    if path.startswith("..") or not (ROOT / path).is_file():
        return None
    return path.removeprefix("docs/") if path.startswith("docs/") else _COPIES + path
