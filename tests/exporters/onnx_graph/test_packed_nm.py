"""A packed linear is one node and one initializer, and runs with our kernels and without them."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import sparsify
from exporters.onnx import FILE, Onnx
from sparsify import native
from sparsify.engine.export import write_checked
from sparsify.errors import ExportError, KernelError
from sparsify.ir.features.packed_nm import pack_linear
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.run.agreement import strange_rounding
from sparsify.ir.tensor_names import PACKED
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears
from sparsify.ir.views.packed import packed_linears
from sparsify.runtime.session import onnxruntime_session
from sparsify.tensors.packing.packed import Layout, pack
from sparsify.tensors.precision import largest_difference, relative_difference

# The pattern, the values and the sizes of each linear; every second one has no bias.
LAYOUTS = [
    Layout(1, 4, 64, 24),
    Layout(2, 4, 37, 13),
    Layout(4, 8, 64, 24),
    Layout(2, 8, 45, 9),
    Layout(1, 8, 64, 24),
    Layout(3, 8, 61, 24),
    Layout(2, 4, 64, 24, "int8", 32),
    Layout(3, 8, 50, 7, "int8", 64),
    Layout(2, 4, 64, 24, "int4", 32),
    Layout(1, 8, 33, 11, "int4", 128),
]


class Many(nn.Module):
    """`x [batch, length, 64]` -> the outputs of linears that each read its first columns."""

    def __init__(self, layouts):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(layout.in_features, layout.out_features, bias=i % 2 == 0)
            for i, layout in enumerate(layouts)
        )

    def forward(self, x):
        return torch.cat([layer(x[..., : layer.in_features]) for layer in self.layers], -1)


def packed_bytes(weight, layout):
    """The bytes of a weight `[out, in]` without its smallest entries, rounded as the layout says."""
    groups = -(-layout.in_features // layout.m)
    full = nn.functional.pad(weight, (0, groups * layout.m - layout.in_features))
    places = full.abs().view(len(full), groups, layout.m).argsort(2, descending=True)
    kept = torch.zeros(places.shape, dtype=torch.bool).scatter_(2, places[..., : layout.n], True)
    weight = weight * kept.flatten(1)[:, : layout.in_features]
    if layout.values == "float32":
        return pack(weight, layout)
    limit = {"int8": 127, "int4": 7}[layout.values]
    scales = (weight.abs().amax(1, keepdim=True) / limit).half().expand(-1, layout.groups)
    codes = (weight / scales[:, :1].float()).round().clamp(-limit, limit)
    return pack(codes.to(torch.int8), layout, scales)


def packed_program(layouts) -> Program:
    torch.manual_seed(0)
    x = torch.randn(2, 5, max(layout.in_features for layout in layouts))
    program = trace(Many(layouts).eval(), {"x": x}, {"x": {0: "batch", 1: "length"}})
    for view, layout in zip(linears(program), layouts, strict=True):
        pack_linear(
            program,
            view,
            packed_bytes(torch.randn(layout.out_features, layout.in_features), layout),
            layout,
        )
    sweep(program)
    program.features |= {PACKED}
    return program


@dataclass(frozen=True)
class Exported:
    program: Program
    folder: Path

    @property
    def path(self):
        return self.folder / FILE

    def read(self, inputs):
        return Onnx().read_back(self.program, self.folder)(inputs)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    program = packed_program(LAYOUTS)
    return Exported(program, write_checked(Onnx(), program, tmp_path_factory.mktemp("many")))


@pytest.fixture(params=["kernels", "function"])
def runtime(request, monkeypatch, tmp_path):
    """ONNX Runtime with our library, and without it."""
    if request.param == "function":
        monkeypatch.setenv(native.ENVIRONMENT, str(tmp_path / "none"))
    elif native.library() is None:
        pytest.skip("the kernels are not built")
    return request.param


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7)])
def test_the_file_gives_what_the_program_gives(many, shape):
    inputs = {"x": torch.randn(*shape, 64, generator=torch.Generator().manual_seed(5))}
    (wanted,), (found,) = many.program.run(inputs), many.read(inputs)
    sizes = [layout.out_features for layout in LAYOUTS]
    for a, b in zip(wanted.split(sizes, -1), found.split(sizes, -1), strict=True):
        assert relative_difference(a, b) <= 1e-5


def test_each_linear_is_one_node_with_one_initializer(many):
    model = onnx.load(many.path)
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.domain == "sparsify"]
    weights = {i.name: i for i in model.graph.initializer}
    assert [node.op_type for node in nodes] == ["NMLinear"] * len(LAYOUTS)
    for node, view in zip(nodes, packed_linears(many.program), strict=True):
        said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        layout = view.layout
        assert said == {
            "n": layout.n,
            "m": layout.m,
            "in_features": layout.in_features,
            "out_features": layout.out_features,
            "group": layout.group,
            "layout": 1,
            "values": layout.values.encode(),
        }
        held = weights[node.input[1]]
        assert (node.input[1], list(held.dims)) == (view.weight, [layout.nbytes])
        assert held.data_type == onnx.TensorProto.UINT8
        assert list(weights[node.input[2]].dims) == [layout.out_features]
    held = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.UINT8]
    assert len(held) == len(LAYOUTS)
    assert [(f.domain, f.name) for f in model.functions] == [("sparsify", "NMLinear")]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23), ("sparsify", 1)}


def test_the_kernels_win_over_the_function(many, tmp_path, monkeypatch):
    if native.library() is None:
        pytest.skip("the kernels are not built")
    model = onnx.load(many.path)
    model.functions[0].node[-1].op_type = "Neg"
    onnx.save(model, tmp_path / FILE)
    x = many.program.sample["x"].numpy()
    (wanted,) = many.program.run(many.program.sample)
    (found,) = onnxruntime_session(tmp_path / FILE).run(None, {"x": x})
    assert relative_difference(wanted, torch.from_numpy(found)) <= 1e-5
    monkeypatch.setenv(native.ENVIRONMENT, str(tmp_path / "none"))
    (found,) = onnxruntime_session(tmp_path / FILE).run(None, {"x": x})
    assert relative_difference(wanted, torch.from_numpy(-found)) <= 1e-5
    with pytest.raises(KernelError):
        onnxruntime_session(tmp_path / FILE, require_kernels=True)


def test_heavy_bytes_lie_beside_the_graph_at_pages(monkeypatch, tmp_path):
    monkeypatch.setattr("exporters.onnx._EXTERNAL_PACKED_BYTES", 10_000)
    program = packed_program([Layout(2, 4, 96, 96), Layout(3, 8, 95, 99, "int8", 32)])
    folder = write_checked(Onnx(), program, tmp_path)
    graph = onnx.load(folder / FILE, load_external_data=False).graph
    outside = {
        item.name: {entry.key: entry.value for entry in item.external_data}
        for item in graph.initializer
        if item.data_location == onnx.TensorProto.EXTERNAL
    }
    assert {view.weight for view in packed_linears(program)} == set(outside)
    data = (folder / "model.onnx.data").read_bytes()
    for path, place in outside.items():
        assert place["location"] == "model.onnx.data"
        start, length = int(place["offset"]), int(place["length"])
        assert start % 4096 == 0
        assert data[start : start + length] == program.tensor(path).numpy().tobytes()
    assert (folder / FILE).stat().st_size < 30_000


@pytest.mark.parametrize(
    ("layout", "bytes_for_a_weight"),
    [
        (Layout(2, 4, 256, 256), 2.25),
        (Layout(2, 8, 256, 256), 1.25),
        (Layout(2, 4, 256, 256, "int4", 128), 0.39),
    ],
)
def test_the_file_is_as_small_as_promised(layout, bytes_for_a_weight, tmp_path):
    folder = write_checked(Onnx(), packed_program([layout]), tmp_path)
    beside = 20_000  # the function, the graph, the bias
    assert (folder / FILE).stat().st_size <= 256 * 256 * bytes_for_a_weight + beside


@pytest.mark.parametrize("opset", [18, 20, 24])
def test_other_operator_sets(opset, tmp_path, monkeypatch):
    layouts = [Layout(2, 4, 40, 9), Layout(5, 8, 40, 9, "int4", 32)]
    program = packed_program(layouts)
    folder = write_checked(Onnx(opset=opset), program, tmp_path)
    assert onnx.load(folder / FILE).ir_version == (10 if opset > 20 else 9)
    (wanted,) = program.run(program.sample)
    for library in (native.library(), tmp_path / "none"):
        monkeypatch.setenv(native.ENVIRONMENT, str(library))
        (found,) = Onnx().read_back(program, folder)(dict(program.sample))
        assert relative_difference(wanted, found) <= 1e-5


@pytest.mark.parametrize(
    ("name", "values", "count"),
    [("llama", "int8", 14), ("gpt2", "float32", 8), ("bert", "int4", 13)],
)
def test_families(name, values, count, programs, tmp_path, monkeypatch):
    program = programs(name)
    patterns = itertools.cycle([(2, 4), (1, 8), (3, 8), (1, 4)])
    for view in [v for v in linears(program) if 200 not in program.tensor(v.weight).shape]:
        weight = program.tensor(view.weight).detach()
        weight = weight.t() if view.transposed else weight
        group = 0 if values == "float32" else 32
        layout = Layout(*next(patterns), weight.shape[1], weight.shape[0], values, group)
        pack_linear(program, view, packed_bytes(weight, layout), layout)
    sweep(program)
    program.features |= {PACKED}
    folder = write_checked(Onnx(), program, tmp_path)
    nodes = [node.op_type for node in onnx.load(folder / FILE).graph.node]
    assert nodes.count("NMLinear") == len(packed_linears(program)) == count
    ids = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(1))
    inputs = program.complete({"input_ids": ids})
    for library in (native.library(), tmp_path / "none"):
        monkeypatch.setenv(native.ENVIRONMENT, str(library))
        found = Onnx().read_back(program, folder)(inputs)
        own = program.run(inputs)
        if values == "float32":
            assert largest_difference(own, found) <= 1e-5
        else:  # rounding makes steps of differences in the last digit
            assert strange_rounding(program, inputs, own, found) == ""


def test_quantizers_that_are_not_packed(programs, tmp_path):
    program = sparsify.parse("insert-quantizers{values=int8 group=32}").run(
        programs("llama"), sparsify.Context()
    )
    with pytest.raises(ExportError) as caught:
        write_checked(Onnx(), program, tmp_path)
    assert str(caught.value) == (
        "onnx cannot hold quantizers; add pack-nm to the pipeline, or export to safetensors"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_the_kernels_give_is_checked(monkeypatch, tmp_path):
    """A file whose bytes are others is refused: the comparison reads the packed weights."""
    program = packed_program([Layout(2, 4, 40, 9, "int8", 32)])
    write = Onnx.write

    def spoil(self, program, folder):
        write(self, program, folder)
        model = onnx.load(folder / FILE)
        weight = next(i for i in model.graph.initializer if i.data_type == onnx.TensorProto.UINT8)
        data = np.frombuffer(weight.raw_data, np.uint8).copy()
        data[:2] = 0, 0x50  # the scale of the first row
        weight.raw_data = data.tobytes()
        onnx.save(model, folder / FILE)

    monkeypatch.setattr(Onnx, "write", spoil)
    with pytest.raises(
        ExportError, match=r"the product with @layers\.0\.weight_packed differs by 1e\+03"
    ):
        write_checked(Onnx(), program, tmp_path)
