"""The section of a report on mixtures of experts: what a token costs and what a step touches."""

from sparsify.describe.cost import MEANING, Cost, summary
from sparsify.describe.facts import Facts
from sparsify.report.figure import short
from sparsify.report.html import Html, bar, percent, section, size, table, tag


def mixture(facts: Facts | None) -> Html:
    """The tables of a program with experts; nothing for any other."""
    if facts is None or facts.cost is None:
        return Html()
    return section(
        "Cost of a mixture",
        table(("a token", ""), summary(facts.cost)),
        _steps(facts.cost),
        tag("ul", *(tag("li", sentence) for sentence in MEANING), class_="notes"),
    )


def _steps(cost: Cost) -> Html:
    """A row a number of tokens: bytes and multiply-adds in columns of their own."""
    header = ("tokens", "experts touched", "bytes touched", "of all", "forward multiply-adds")
    rows = [
        (
            f"{step.tokens:,}",
            f"{step.experts:,.1f}",
            [bar(step.share), size(step.bytes)],
            percent(step.share),
            short(step.multiply_adds),
        )
        for step in cost.steps()
    ]
    return table(header, rows)
