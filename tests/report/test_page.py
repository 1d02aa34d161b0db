"""Pictures of variants and the page of a folder: what is in them, and what is refused."""

import json
from html.parser import HTMLParser

import pytest

from sparsify.errors import DataError
from sparsify.report.figure import PANELS, bars, bars_figure, longest_bar, save, short
from sparsify.report.found import find
from sparsify.report.page import write_page

PNG = b"\x89PNG\r\n\x1a\n"
VARIANTS = [
    {"name": "dense", "perplexity": 12.0, "parameters": 1_240_000, "bytes": 5_000_000,
     "ratio": 1.0},
    {"name": "heads and channels pruned to 70 %", "perplexity": 13.5, "parameters": 880_000,
     "ratio": 1.5, "ratio_low": 1.3, "ratio_high": 1.7},
]  # fmt: skip
PASSES = [
    {"name": "insert-masks", "text": "insert-masks{of=weights}", "places": 4, "nodes": 90,
     "parameters": 1000, "zeros": 0, "seconds": 0.5, "checking": 0.1, "move": 0.0},
    {"name": "choose-masks", "text": "choose-masks{pattern=2:4 score=<b>}", "places": 4,
     "nodes": 90, "parameters": 1000, "zeros": 500, "seconds": 1.25, "checking": 0.1,
     "move": 3.5e-2, "note": "some <b> words"},
]  # fmt: skip
MACHINE = {
    "cpu": "some & other", "cores": "2", "instructions": "avx2", "python": "3", "torch": "2", "onnx": "1",
    "onnxruntime": "1", "transformers": "5", "sparsify-fx": "",
}  # fmt: skip
TIMING = {
    "name": "dense", "tokens": 1, "median_ms": 5.25, "p10_ms": 5.0, "p90_ms": 6.0, "ratio": 1.0,
    "ratio_low": 1.0, "ratio_high": 1.0, "batch": 1, "past": 500,
}  # fmt: skip
FASTER = {**TIMING, "name": "sparse", "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 2.0}
BENCH = {"machine": MACHINE, "timings": [TIMING, FASTER], "threads": 2, "file": "onnx"}
EVAL = {
    "onnx": {
        "name": "onnx", "kind": "onnx", "data": "texts/a.txt", "perplexity": 12.3456789,
        "tokens": 10_000, "context": 128,
    },
    "encoder": {
        "name": "encoder", "kind": "program", "data": "b.txt", "mean": 0.98765, "lowest": 0.5,
        "sentences": 77, "context": 32,
    },
}  # fmt: skip
RUN = {"model": "org/model", "pipeline": "x", "data": None, "seed": 3, "machine": MACHINE}


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_600, "1 M"),
        (124_439_808, "124 M"),
        (7.2e9, "7.2 G"),
    ],
)
def test_counts_are_written_short(value, words):
    assert short(value) == words


def test_a_noisy_spread_does_not_shrink_the_bars():
    assert longest_bar([(1.0, 1.1), (2.0, 2.2)]) == 2.2
    assert longest_bar([(1.0, 1.1), (2.0, 40.0)]) == 3.0
    noisy = {"name": "b", "ratio": 2.0, "ratio_low": 0.5, "ratio_high": 40.0}
    (axis,) = bars_figure([{"name": "a", "ratio": 1.0}, noisy], "title").axes
    assert axis.get_xlim()[1] == pytest.approx(3.0 * 1.45)


def test_bars_have_a_panel_a_measure_and_say_what_was_not_measured():
    figure = bars_figure(VARIANTS, "title")
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes]
    assert titles == ["perplexity", "parameters", "bytes", "speed against the first"]
    assert len(titles) == len(PANELS)
    assert texts(figure.axes[0]) == ["12", "13.5"]
    assert texts(figure.axes[1]) == ["1.24 M", "880 k"]
    assert texts(figure.axes[2]) == ["5 MB", " not measured"]
    assert texts(figure.axes[3]) == ["1.00 x", "1.50 x"]
    only = bars_figure([{"name": "a", "parameters": 3}], "title")
    assert len(only.axes) == 1


def test_no_text_of_a_figure_overlaps_another_or_leaves_the_picture():
    figure = bars_figure(VARIANTS * 3, "a title")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    items = [t for a in figure.axes for t in (*a.texts, *a.get_yticklabels(), a.title)]
    boxes = [t.get_window_extent(renderer) for t in items if t.get_visible() and t.get_text()]
    assert len(boxes) >= 8
    for place, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_a_figure_is_written_whole_and_always_the_same(tmp_path):
    path = bars(VARIANTS, tmp_path / "bars.png")
    first = path.read_bytes()
    assert first.startswith(PNG)
    assert bars(VARIANTS, path).read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["bars.png"]


class _Reader(HTMLParser):
    """Collects texts by the tag they stand in, and addresses, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.addresses = [], {}, []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def page(folder):
    """The page of a folder, read; it must stand alone."""
    path = write_page(find(folder))
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.addresses == ["data:,"]
    assert not any(word in text for word in ("http", "url(", "@import", "<script"))
    return reader.texts


def test_a_page_holds_what_the_folder_tells(tmp_path):
    steps = [{"step": 1, "loss": 3.0, "lr": 0.1}, {"step": 2, "loss": 2.5, "lr": 0.0}]
    write(tmp_path, report=PASSES, train=steps, eval=EVAL, bench=BENCH, run=RUN)
    texts = page(tmp_path)
    assert texts["pre"] == ["insert-masks{of=weights}\n| choose-masks{pattern=2:4 score=<b>}"]
    cells = ("500", "3.5e-02", "1.25", "12.346", "10,000", "a.txt", "0.9877", "77", "5.250")
    for cell in (*cells, "1 \u00d7 1 tokens after 500", "1.50 \u00d7", "1.40\u20132.00"):
        assert cell in texts["td"]
    assert texts["li"] == [": some <b> words"]
    assert "made from model" in texts["p"]
    assert "1.8 s in the passes, 0.2 s in checking what they did." in texts["p"]
    assert any("2 thread(s), some & other, 2 cores, avx2, python 3" in text for text in texts["p"])
    assert texts["dt"] == ["model", "seed", "machine"]
    assert "loss 2.5" in texts["span"]
    assert texts["h2"] == [
        "Sparsity", "Quality", "Speed", "Pipeline", "Passes", "Training", "The run",
    ]  # fmt: skip


def test_what_was_not_measured_is_said_with_what_measures_it(tmp_path):
    write(tmp_path, report=PASSES)
    texts = page(tmp_path)
    assert texts["p"].count("not measured") == 3
    assert "The weights are not listed here." in texts["p"]
    assert texts["code"] == [
        f"sparsify-fx eval {tmp_path.name} --data TEXT",
        f"sparsify-fx bench {tmp_path.name} --against DENSE",
    ]
    assert "Training" not in texts["h2"]


def test_what_cannot_be_shown_is_told(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError) as error:
        find(tmp_path)
    assert str(error.value) == f"'{tmp_path}' holds no run and no model"
    write(tmp_path / "inner", report=PASSES)
    with pytest.raises(DataError) as error:
        find(tmp_path)
    assert (
        str(error.value)
        == f"'{tmp_path}' holds no run and no model; name one of those in it: inner"
    )
    write(tmp_path, report={})
    with pytest.raises(DataError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"'{tmp_path / 'report.json'}' is not a file of a run: it holds a dict"
    )
    with pytest.raises(DataError) as error:
        bars([{"name": "dense"}], tmp_path / "bars.png")
    assert str(error.value) == "there is nothing to draw: no variant has a measure"
    nowhere = tmp_path / "none" / "bars.png"
    with pytest.raises(DataError) as error:
        save(bars_figure(VARIANTS, ""), nowhere)
    assert str(error.value) == f"could not write '{nowhere}': No such file or directory"
