"""HTML in small pieces: tags that escape what they are given, tables, numbers; and the page around them."""

from collections.abc import Container, Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from sparsify.report.figure import short


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


Part = str | Html | None | Iterable["Part"]


def join(parts: Part) -> Html:
    """Parts as one, plain text escaped; None is nothing."""
    if parts is None:
        return Html()
    if isinstance(parts, Html):
        return parts
    if isinstance(parts, str):
        return Html(escape(parts))
    return Html("".join(join(part) for part in parts))


def tag(name: str, *parts: Part, **attributes: Any) -> Html:
    """`<name attributes>parts</name>`; attributes that are None are left out, `class_` is `class`."""
    said = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{said}>{join(parts)}</{name}>")


def section(title: str, *parts: Part) -> Html:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *parts)


def unmeasured(what: str, command: str) -> Html:
    """A sentence on what was not measured, and the command that does."""
    return tag("p", f"{what} ", tag("code", command), " measures it.", class_="none")


def table(
    header: Sequence[Part], rows: Iterable[Sequence[Part]], words: Container[int] = ()
) -> Html:
    """A table in a box of its own; the first column heads its row, columns of `words` begin at the left."""
    kinds = ["word" if number in words else None for number in range(len(header))]
    head = (
        tag("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True)
    )
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    )
    return wide(tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body)))


def wide(*parts: Part) -> Html:
    """A box that scrolls sideways; it can be reached and moved by keyboard."""
    return tag("div", *parts, class_="wide", tabindex="0", role="group")


def bar(share: float, spread: tuple[float, float] | None = None, even: float | None = None) -> Html:
    """A bar of `share` of its box, with a spread over it and a line where nothing is won; all from 0 to 1."""
    marks = [tag("b", style=f"width:{100 * share:.2f}%")]
    if even is not None:
        marks.append(tag("i", class_="even", style=f"left:{100 * even:.2f}%"))
    if spread is not None:
        low, high = spread
        style = f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"
        marks.append(tag("i", class_="spread", style=style))
    return tag("span", *marks, class_="bar", aria_hidden="true")


def percent(share: float) -> str:
    """A share in per cent, without a decimal where it says nothing: `50 %`, `33.3 %`, `<0.1 %`."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    text = f"{value:.1f}"
    return f"{text.removesuffix('.0')} %"


def size(count: float) -> str:
    """Bytes with a unit: `1.23 MB`."""
    return f"{short(count)}B" if count >= 1000 else f"{short(count)} B"


def document(title: str, parts: Part) -> str:
    """The whole file; it asks for nothing outside itself."""
    style = (resources.files("sparsify.report") / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Without it a browser would look for an icon beside the file.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>{join(parts)}</main></body></html>\n"
    )
