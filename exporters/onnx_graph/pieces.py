"""An ONNX file run in pieces: cut before every product that rounds its input, see `sparsify.ir.run.pieces`.

    Y = NMLinear(X, W, B)  ->  Y = NMLinear(given, W, B), X and Y are outputs too        MatMulNBits likewise

The cut graph stands beside the file, whose weights it reads, until the session is open.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from exporters.onnx_graph import packed_dense
from exporters.onnx_graph.nm_function import DOMAIN, NAME
from sparsify.errors import ExportError
from sparsify.ir.decode.caches import public_name
from sparsify.ir.run.pieces import PieceReader, Pieces, Place, places
from sparsify.runtime.session import onnxruntime_session

_CUT = "pieces.onnx"


def piece_reader(path: Path, outputs: Sequence[str]) -> PieceReader:
    """What runs a written file in pieces on ONNX Runtime; `outputs` are the names of its own outputs."""
    model = ir.load(path)
    found = places((_weight(node), node) for node in model.graph if _rounds(node))
    entering, leaving, fed = dict[Place, str](), dict[Place, str](), dict[Place, str]()
    for number, (place, node) in enumerate(found.items()):
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        assert x.name is not None
        assert y.name is not None
        given = ir.Value(name=f"given.{number}", type=x.type, shape=x.shape)
        model.graph.inputs.append(given)
        node.replace_input_with(0, given)
        entering[place], leaving[place], fed[place] = x.name, y.name, f"given.{number}"
        for value in (x, y):
            if not value.is_graph_output():
                model.graph.outputs.append(value)
    cut = path.with_name(_CUT)
    try:
        ir.save(model, cut)
        session = onnxruntime_session(cut, verify=False)
    finally:
        cut.unlink(missing_ok=True)

    def run(inputs: Mapping[str, Tensor], given: Mapping[Place, Tensor]) -> Pieces:
        if given.keys() != fed.keys():
            strange = sorted(given.keys() ^ fed.keys())[0][0]
            raise ExportError(f"the file has other products with @{strange} than the program")
        feeds = {public_name(name): value.detach().cpu().numpy() for name, value in inputs.items()}
        feeds |= {fed[place]: value.cpu().numpy() for place, value in given.items()}
        names = [value.name for value in session.get_outputs()]
        values = dict(zip(names, map(torch.from_numpy, session.run(names, feeds)), strict=True))
        return Pieces(
            tuple(values[name] for name in outputs),
            {place: values[name] for place, name in entering.items()},
            {place: values[name] for place, name in leaving.items()},
        )

    return run


def _weight(node: ir.Node) -> str:
    weight = node.inputs[1]
    return (weight.name if weight is not None else None) or ""


def _rounds(node: ir.Node) -> bool:
    """Whether a node is a product that rounds its input."""
    if (node.domain, node.op_type) == (DOMAIN, NAME):
        return node.attributes.get_string("values", "float32") != "float32"
    return (node.domain, node.op_type) == (packed_dense.DOMAIN, packed_dense.LINEAR)
