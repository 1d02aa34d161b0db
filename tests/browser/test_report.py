"""The page of a report as Chromium shows it: whole, quiet, asking for nothing, on a phone and on a desk."""

import json

import pytest

from sparsify.describe.facts import Facts, Weight, write_facts
from sparsify.report.found import find
from sparsify.report.page import write_page
from tests.browser.chromium import browser
from tests.browser.chromium import find as find_browser
from tests.report.test_page import BENCH, EVAL, PASSES, RUN

pytestmark = pytest.mark.browser
# What a reader must find, and the width it takes beyond that of the window.
CELLS = """Array.from(document.querySelectorAll('.heat td.cell')).map(cell => {
  const box = cell.getBoundingClientRect(), style = getComputedStyle(cell);
  return [cell.textContent, box.width, box.height, style.backgroundColor, style.color]; })"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Elements that stick out of the page and not out of a box that scrolls.
OUTSIDE = """Array.from(document.querySelectorAll('main *')).filter(item =>
  !item.closest('.wide, svg') && item.getBoundingClientRect().right > innerWidth + 0.5).length"""


def weight(path, shape, was, zeros=0.0, pattern="", values="float32", packed=False):
    size = shape[0] * shape[1] * (shape[2] if len(shape) > 2 else 1) if shape else 0
    return Weight(path, shape, was, int(zeros * size), pattern, packed, values, 4 * size)


def every_case():
    """Layers that are dense, unstructured, 2:4, packed, cut, of experts, and gone."""
    found = []
    for layer in range(8):
        path, gone = f"model.layers.{layer}", layer == 6
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            cut = (48, 64) if layer in (2, 3) else (64, 64)
            how = {1: (0.1 * layer + 0.6,), 4: (0.5, "2:4"), 5: (0.5, "2:4", "int8", True)}
            found.append(
                weight(
                    f"{path}.attention.{name}.weight",
                    () if gone else cut,
                    (64, 64),
                    *how.get(layer, ()),
                )
            )
        experts = () if gone else ((8, 96, 64) if layer != 3 else (6, 96, 64))
        zeros = 0.125 * layer
        found.append(
            weight(f"{path}.mlp.experts.up", experts, (8, 96, 64), zeros, values="bfloat16")
        )
    found.append(weight("head.weight", (300, 64), (300, 64)))
    return Facts(
        "SomeForCausalLM",
        "text-generation",
        (),
        900_000,
        1_000_000,
        300_000,
        12_345_678,
        128,
        tuple(found),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a-model-with-a-rather-long-name-2-4-int8"
    (folder / "onnx").mkdir(parents=True)
    write_facts(every_case(), folder / "onnx")
    steps = [
        {"step": n + 1, "lr": 1e-3 / (n + 1), "loss": 3 + 2 / (n + 1), "omission": 0.5}
        for n in range(50)
    ]
    files = {"report": PASSES, "eval": EVAL, "bench": BENCH, "run": RUN, "train": steps + steps}
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return write_page(find(folder))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is found; install one (Debian: chromium) or name it in CHROMIUM")
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_whole_and_quiet_and_fits(chromium, page, width, dark):
    chromium.open(page, width, dark=dark)
    assert chromium.requests == [page.resolve().as_uri()]
    assert chromium.complaints == []
    assert chromium.ask(OVERFLOW) == 0
    assert chromium.ask(OUTSIDE) == 0
    cells = chromium.ask(CELLS)
    assert len(cells) == (8 + 1) * (5 + 1)
    assert all(text and wide >= 60 and high >= 30 for text, wide, high, _, _ in cells)
    assert chromium.ask("document.querySelectorAll('.plot svg path').length") > 10
    paper = chromium.ask("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in paper[4:-1].split(",")) / 3
    assert brightness < 60 if dark else brightness > 240


def test_cells_are_coloured_by_what_is_gone(chromium, page):
    chromium.open(page, 1200)
    colours = {text: colour for text, _, _, colour, _ in chromium.ask(CELLS)}
    assert len({colours["0 %"], colours["50 %2:4"], colours["70 %"], colours["removed"]}) == 4


def test_a_fault_is_noticed(chromium, tmp_path):
    """The test must be able to fail: a page that asks, complains and sticks out is told apart."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<main><img src='http://example.invalid/a.png'><p style='width:3000px'>x</p></main>"
        "<script>console.error('no')</script>",
        encoding="utf-8",
    )
    chromium.open(path, 400)
    assert "http://example.invalid/a.png" in chromium.requests
    assert len(chromium.complaints) == 2
    assert chromium.ask(OVERFLOW) > 0
    assert chromium.ask(OUTSIDE) > 0
