"""Rounded exports: right ones pass however far rounding falls the other way, wrong ones do not."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import torch
from onnx import numpy_helper

from exporters.onnx import FILE, Onnx
from exporters.onnx_decode import OnnxDecode
from sparsify import Context, parse
from sparsify.engine.export import write_checked
from sparsify.errors import ExportError
from sparsify.ir.run.pieces import run_in_pieces
from sparsify.ir.views.packed import packed_linears
from sparsify.tensors.packing.packed import pack, unpack


def packed(values):
    return (
        "insert-masks | choose-masks{pattern=2:4} | fold-masks | "
        f"insert-quantizers{{values={values} group=32}} | choose-scales | pack-nm{{values={values}}}"
    )


PIPELINES = {
    "int8": packed("int8"),
    "int4": packed("int4"),
    "blocks": "insert-quantizers{values=int4 group=32} | choose-scales | pack-dense",
}
WEIGHT = "model.layers.1.mlp.up_proj.weight"


@dataclass(frozen=True)
class Damaged(OnnxDecode):
    """Puts other scales for some `rows` of one layer into the files of `right` than the program has."""

    name: ClassVar[str] = "damaged"
    right: Path = Path()
    factor: float = 1.0
    rows: int = 1

    def write(self, program, folder):
        shutil.copytree(self.right, folder, dirs_exist_ok=True)
        model = onnx.load(folder / FILE)
        views = [view for view in packed_linears(program) if view.weight.startswith(WEIGHT)]
        name = views[0].weight if views else f"{WEIGHT}_block_scales"
        (stored,) = (item for item in model.graph.initializer if item.name == name)
        value = torch.from_numpy(numpy_helper.to_array(stored).copy())
        assert torch.equal(value, program.tensor(name).to(value.dtype))
        if views:
            codes, scales = unpack(value, views[0].layout)
            scales[: self.rows] *= self.factor
            value = pack(codes, views[0].layout, scales)
        else:
            value[: self.rows] *= self.factor
        stored.CopyFrom(numpy_helper.from_array(value.numpy(), name))
        onnx.save(model, folder / FILE)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("exporter", [Onnx(), OnnxDecode()], ids=lambda item: item.name)
def test_a_file_in_pieces_is_its_program_to_the_last_digits(name, exporter, traced, tmp_path):
    program = exporter.variant(parse(PIPELINES[name]).run(traced("llama"), Context()))
    exporter.write(program, tmp_path)
    row = {key: value[:1] for key, value in program.sample.items()}
    own, given = run_in_pieces(program, row)
    found = exporter.read_pieces(program, tmp_path)(row, given)
    for mine, its in ((own.entering, found.entering), (own.leaving, found.leaving)):
        assert mine.keys() == its.keys()
        for place in mine:
            assert (mine[place] - its[place]).abs().max() <= 1e-5 * mine[place].abs().max()
    assert not (tmp_path / "pieces.onnx").exists()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_wrong_scale_in_one_layer_is_refused(name, traced, tmp_path):
    program = parse(PIPELINES[name]).run(traced("llama"), Context())
    right, out = tmp_path / "right", tmp_path / "out"
    right.mkdir()
    OnnxDecode().write(OnnxDecode().variant(program), right)
    for factor, rows in ((1.02, 128), (1.25, 1), (0.5, 1)):
        wrong = Damaged(right=right, factor=factor, rows=rows)
        with pytest.raises(ExportError, match=rf"output of the product with @{WEIGHT}_\w+ differs"):
            write_checked(wrong, program, out)
    assert not out.exists() or not list(out.iterdir())
    write_checked(Damaged(right=right), program, out)


def test_another_product_in_the_file_is_refused(traced, tmp_path):
    program = parse(PIPELINES["int8"]).run(traced("llama"), Context())
    Onnx().write(program, tmp_path)
    reader = Onnx().read_pieces(program, tmp_path)
    row = {key: value[:1] for key, value in program.sample.items()}
    _, given = run_in_pieces(program, row)
    given.pop((f"{WEIGHT}_packed", 0))
    with pytest.raises(ExportError, match=f"other products with @{WEIGHT}_packed"):
        reader(row, given)


@dataclass(frozen=True)
class Elsewhere(Onnx):
    """Reads back outputs that are off by `error` of their size."""

    name: ClassVar[str] = "elsewhere"
    error: float = 0.0

    def read_back(self, program, folder):
        reader = super().read_back(program, folder)

        def run(inputs):
            (logits,) = reader(inputs)
            noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
            return (logits + self.error * logits.abs().max() * noise,)

        return run


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_outputs_may_move_as_far_as_rounding_does(error, traced, tmp_path):
    program = parse(PIPELINES["int8"]).run(traced("llama"), Context())
    write_checked(Elsewhere(error=error), program, tmp_path)
    with pytest.raises(
        ExportError, match="gives another logits of the sample batch: the loss a token"
    ):
        write_checked(Elsewhere(error=0.5), program, tmp_path / "wrong")
