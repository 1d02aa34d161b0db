"""Figures and the page of a run: what is in them, and what is refused."""

import json
import re
from html.parser import HTMLParser

import pytest

from sparsify.errors import DataError
from sparsify.files import write_json
from sparsify.measure.figure import PANELS, bars, bars_figure, save, short
from sparsify.measure.page import write_page
from sparsify.measure.plots import loss_plot, masks_plot, passes_plot, speed_plot

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
TIMING = {
    "name": "dense", "tokens": 1, "median_ms": 5.25, "p10_ms": 5.0, "p90_ms": 6.0, "ratio": 1.0,
    "ratio_low": 1.0, "ratio_high": 1.0, "batch": 1, "past": 500,
}  # fmt: skip


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
    figures = (
        bars_figure(VARIANTS * 3, "a title"),
        passes_plot(PASSES * 4),
        speed_plot([TIMING, {**TIMING, "name": "heads and channels pruned", "ratio": 0.5}] * 2),
    )
    for figure in figures:
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


def test_a_loss_plot_has_a_line_a_training():
    steps = [{"step": 1, "loss": 3.0}, {"step": 2, "lr": 0.1}, {"step": 3, "loss": 2.0}]
    (axis,) = loss_plot({"3 train": steps, "7 train": steps}).axes
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, 3], [3, 2]]] * 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["3 train", "7 train"]


def test_a_plot_of_masks_shows_what_changed_and_the_sizes_on_both_sides():
    moved = {"flips": 0.2, "drift": 0.3, "masked": 0.05, "kept": 0.1}
    steps = [{"step": 1, "loss": 3.0}, {"step": 11, **moved}, {"step": 21, **moved, "flips": 0.1}]
    shares, sizes = masks_plot(steps).axes
    assert [line.get_xydata().tolist() for line in shares.lines] == [
        [[11, 0.2], [21, 0.1]],
        [[11, 0.3], [21, 0.3]],
    ]
    assert [line.get_ydata().tolist() for line in sizes.lines] == [[0.05, 0.05], [0.1, 0.1]]


def test_the_page_of_a_run_with_moving_masks_has_their_picture(tmp_path):
    row = {"text": "train{steps=1}", "name": "train", "places": 1, "nodes": 1, "parameters": 1}
    write_json(tmp_path / "report.json", [{**row, "zeros": 0, "seconds": 0.1, "move": 0.0}])
    steps = [{"step": 1, "loss": 1.0, "flips": 0.1, "drift": 0.1, "masked": 0.1, "kept": 0.2}]
    write_json(tmp_path / "train.json", steps)
    assert 'alt="masks of train"' in write_page(tmp_path).read_text()


class _Reader(HTMLParser):
    """Collects table cells and sources, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "pre"):
            self.cells.append(data)


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def read(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_a_page_holds_every_table_and_plot_and_needs_no_other_file(tmp_path):
    write(
        tmp_path,
        report=PASSES,
        train=[{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}],
        eval={"perplexity": 12.3456789, "tokens": 10_000, "data": "a.txt"},
        bench={"machine": {"cpu": "some & other"}, "timings": [TIMING]},
    )
    extra = bars(VARIANTS, tmp_path / "bars.png")
    page = write_page(tmp_path, rows=VARIANTS, figures=[extra])
    assert page == tmp_path / "report.html"
    reader = read(page)
    assert reader.cells[0] == "insert-masks{of=weights} | choose-masks{pattern=2:4 score=<b>}"
    for cell in ("500", "3.5e-02", "2.5000", "12.3457", "10,000", "a.txt", "5.250"):
        assert cell in reader.cells
    assert "dense, 1 x 1 tokens after 500" in reader.cells
    assert len(reader.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    text = re.sub(r"base64,[^\"]+", "", page.read_text(encoding="utf-8"))
    assert "some &amp; other" in text
    assert "<p>choose-masks: some &lt;b&gt; words</p>" in text
    assert "http" not in text


def test_a_page_of_passes_alone(tmp_path):
    write(tmp_path, report=PASSES)
    assert len(read(write_page(tmp_path)).sources) == 1
    write(tmp_path, train={"2 train": [{"step": 1, "loss": 3.0}], "4 train": []})
    assert len(read(write_page(tmp_path)).sources) == 2


def test_what_cannot_be_shown_is_told(tmp_path):
    with pytest.raises(DataError) as error:
        write_page(tmp_path)
    assert str(error.value) == (
        f"'{tmp_path}' has no report.json; name a folder that a run has written"
    )
    path = tmp_path / "report.json"
    write(tmp_path, report={})
    with pytest.raises(DataError) as error:
        write_page(tmp_path)
    assert str(error.value) == f"'{path}' is not a file of a run: it holds a dict"
    write(tmp_path, report=[])
    with pytest.raises(DataError) as error:
        write_page(tmp_path)
    assert str(error.value) == f"'{path}' has no pass in it; nothing was run"
    with pytest.raises(DataError) as error:
        bars([{"name": "dense"}], tmp_path / "bars.png")
    assert str(error.value) == "there is nothing to draw: no variant has a measure"
    nowhere = tmp_path / "none" / "bars.png"
    with pytest.raises(DataError) as error:
        save(bars_figure(VARIANTS, ""), nowhere)
    assert str(error.value) == f"could not write '{nowhere}': No such file or directory"
