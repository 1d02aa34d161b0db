"""Weights in their places: stacks, kinds, cells, and what a cell of the heat map says."""

from html.parser import HTMLParser

from sparsify.describe.facts import Weight
from sparsify.report.grid import grouped, stacks
from sparsify.report.heat import heat_maps


def weight(path, shape=(8, 8), was=(8, 8), zeros=0, pattern="", packed=False, values="float32"):
    return Weight(path, shape, was, zeros, pattern, packed, values, 100)


class Cells(HTMLParser):
    """The texts and styles of the cells of the heat map, in order."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        if tag == "td" and "cell" in about.get("class", ""):
            self.cells.append(["", about["style"], about["class"], about["title"]])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.cells[-1][0] += data


def test_a_path_says_stack_layer_and_kind():
    paths = [
        "encoder.block.1.layer.0.q.weight", "encoder.block.0.layer.0.q.weight",
        "encoder.block.0.layer.1.up.weight", "decoder.block.10.layer.0.q.weight", "head.weight",
        "encoder.block.0.layer.1.experts.0.up.weight", "encoder.block.0.layer.1.experts.1.up.weight",
        "0.weight",
    ]  # fmt: skip
    found, outside = stacks(map(weight, paths))
    assert [stack.name for stack in found] == ["encoder.block", "decoder.block", ""]
    encoder = found[0]
    assert encoder.layers == [0, 1]
    assert encoder.kinds == ["layer.*.q", "layer.*.up", "layer.*.experts.*.up"]
    assert len(encoder.cells[0, "layer.*.experts.*.up"]) == 2
    assert (1, "layer.*.up") not in encoder.cells
    assert (found[1].layers, found[2].kinds) == ([10], [""])
    assert [item.path for item in outside] == ["head.weight"]


def test_neighbours_share_a_heading():
    kinds = ["attn.q", "attn.k", "mlp.up", "attn.o", "norm"]
    assert grouped(kinds) == [
        ("attn", ["q", "k"]),
        ("mlp", ["up"]),
        ("attn", ["o"]),
        ("", ["norm"]),
    ]


def test_a_cell_says_zeros_removed_pattern_and_bits():
    weights = [
        weight("layers.0.a"),
        weight("layers.0.b", zeros=48),
        weight("layers.1.a", (6, 8), zeros=24, pattern="2:4", packed=True, values="int8"),
        weight("layers.1.b", (4, 8), values="bfloat16"),
        weight("layers.2.a", ()),
    ]
    cells = Cells(heat_maps(weights)).cells
    assert [text for text, *_ in cells] == [
        "0 %", "75 %", "37.5 %",
        "50 %\u221225 % 2:4 int8", "0 %\u221250 % bf16", "30 %\u221237.5 %",
        "removed", "removed",
        "21.4 %\u221241.7 %", "50 %\u221225 %", "34.6 %\u221235 %",
    ]  # fmt: skip


def test_the_colour_is_what_is_gone():
    weights = [weight("layers.0.a", (6, 8), zeros=24), weight("layers.0.b", zeros=64)]
    first, second, _, *_ = Cells(heat_maps(weights)).cells
    assert first[1] == "--gone:62.5%;--removed:25.0%"
    assert first[2] == "cell middle"
    assert second[1:3] == ["--gone:100.0%;--removed:0.0%", "cell strong"]
    assert first[3] == (
        "layers.0.a [6, 8] of [8, 8]: float32, 100 bytes\n24 of 48 are zero; there were 64"
    )


def test_weights_without_a_number_stand_in_a_table():
    text = heat_maps([weight("head.weight", zeros=16, pattern="3:4")])
    assert "heat" not in text
    assert "<code>head</code>" in text
    assert "8 \u00d7 8" in text
    assert "25 %" in text
    assert "3:4 fp32" in text
