"""An ONNX file run in pieces: cut before every product that rounds its input, see `sparsify.ir.run.pieces`.

    Y = NMLinear(X, W, B)  ->  Y = NMLinear(given, W, B), X and Y are outputs too        MatMulNBits likewise

Of two files the second is given what the first gives. The cut graph stands beside the file, whose weights it
reads, until the session is open.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from exporters.onnx_graph import packed_dense
from exporters.onnx_graph.nm_function import DOMAIN, NAME
from sparsify.errors import ExportError
from sparsify.ir.decode.caches import public_name
from sparsify.ir.run.pieces import PieceReader, Pieces, Place, places
from sparsify.runtime.session import onnxruntime_session, run_session

_CUT = "pieces.onnx"


def piece_reader(paths: Sequence[Path], outputs: Sequence[str]) -> PieceReader:
    """What runs written files in pieces, one after the other; `outputs` are the names of their own ones."""
    models = [ir.load(path) for path in paths]
    found = places((_weight(node), node) for m in models for node in m.graph if _rounds(node))
    cut = {node: (place, f"given.{number}") for number, (place, node) in enumerate(found.items())}
    names = [dict(_cut(model, cut)) for model in models]
    sessions = [_opened(model, path) for model, path in zip(models, paths, strict=True)]

    def run(inputs: Mapping[str, Tensor], given: Mapping[Place, Tensor]) -> Pieces:
        if given.keys() != found.keys():
            strange = sorted(given.keys() ^ found.keys())[0][0]
            raise ExportError(f"the file has other products with @{strange} than the program")
        known = {public_name(name): value.detach().cpu().numpy() for name, value in inputs.items()}
        known |= {name: given[place].cpu().numpy() for place, name in cut.values()}
        entering, leaving = dict[Place, Tensor](), dict[Place, Tensor]()
        for session, named in zip(sessions, names, strict=True):
            made = run_session(session, known)
            known |= made  # of what lies within a file, others may have the names
            entering |= {place: torch.from_numpy(made[x]) for place, (x, _) in named.items()}
            leaving |= {place: torch.from_numpy(made[y]) for place, (_, y) in named.items()}
        return Pieces(tuple(torch.from_numpy(known[name]) for name in outputs), entering, leaving)

    return run


def _cut(
    model: ir.Model, cut: Mapping[ir.Node, tuple[Place, str]]
) -> Iterator[tuple[Place, tuple[str, str]]]:
    """Give a model's nodes in `cut` an input of their own; the names of what enters and leaves each.

    Both are outputs from then on.
    """
    for node in [node for node in model.graph if node in cut]:
        place, name = cut[node]
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        assert x.name is not None
        assert y.name is not None
        given = ir.Value(name=name, type=x.type, shape=x.shape)
        model.graph.inputs.append(given)
        node.replace_input_with(0, given)
        for value in (x, y):
            if not value.is_graph_output():
                model.graph.outputs.append(value)
        yield place, (x.name, y.name)


def _opened(model: ir.Model, path: Path) -> Any:
    """A session of a cut model whose weights lie beside a path."""
    cut = path.with_name(_CUT)
    try:
        ir.save(model, cut)
        return onnxruntime_session(cut, verify=False)
    finally:
        cut.unlink(missing_ok=True)


def _weight(node: ir.Node) -> str:
    weight = node.inputs[1]
    return (weight.name if weight is not None else None) or ""


def _rounds(node: ir.Node) -> bool:
    """Whether a node is a product that rounds its input."""
    if (node.domain, node.op_type) == (DOMAIN, NAME):
        return node.attributes.get_string("values", "float32") != "float32"
    return (node.domain, node.op_type) == (packed_dense.DOMAIN, packed_dense.LINEAR)
