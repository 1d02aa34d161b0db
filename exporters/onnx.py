"""onnx: one `model.onnx` for any runtime that speaks the operator set, through `torch.onnx`.

The program is lowered first (`sparsify.ir.lower.pipeline`), so that every parameter stands in the file under
its own name and grouped attention is one node. Inputs, outputs and varying dimensions keep their
names. A packed linear is one node of our own domain, with its bytes as one initializer.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from torch import Tensor

from exporters.beside.transformers_files import slow_notes, write_about, write_beside, write_config
from exporters.onnx_graph import decayed_mean as onnx_means
from exporters.onnx_graph import packed_dense as onnx_blocks
from exporters.onnx_graph import packed_experts as onnx_experts
from exporters.onnx_graph import packed_nm as onnx_packed
from exporters.onnx_graph import state_scan as onnx_scan
from exporters.onnx_graph.experts import translations
from exporters.onnx_graph.pieces import piece_reader
from exporters.onnx_graph.rotary import give_every_row
from sparsify.engine.contract import Exporter, Reader
from sparsify.errors import ExportError
from sparsify.exclusive import EXCLUSIVE
from sparsify.ir.decode.caches import public_name
from sparsify.ir.facts.admission import most_tokens
from sparsify.ir.features.catalogue import carried
from sparsify.ir.lower.captured import captured
from sparsify.ir.ops.registry import own_ops
from sparsify.ir.program import Program
from sparsify.ir.run.pieces import PieceReader
from sparsify.ir.views.packed import block_weights, packed_linears
from sparsify.pretrained.load import class_named, config_of
from sparsify.runtime.session import onnxruntime_session, run_session

FILE = "model.onnx"
# A protobuf message ends at 2 GiB; heavier weights go into a file of their own beside the graph. So do
# packed ones that are worth mapping into memory, where the kernels read them as they stand.
_EXTERNAL_BYTES = 1_800_000_000
_EXTERNAL_PACKED_BYTES = 4_000_000
# Tensors of more than a page lie in that file, each at the start of a page.
_PAGE = 4096
_OLDEST, _NEWEST = 18, 24
_SHOWN = 8  # tokens of the example in the model card
# What torch.onnx says on every export, and nobody can act on.
_CHATTER = (
    (FutureWarning, r".*isinstance\(treespec, LeafSpec\).*"),
    (UserWarning, r"# The axis name: .* will not be used.*"),
)
_CHATTY_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnx_ir._convenience")


@dataclass(frozen=True)
class Onnx(Exporter):
    """Write `model.onnx` at an operator set; 23 is the fastest one on ONNX Runtime's CPU.

    The pipeline text stands in the metadata under `sparsify.pipeline`, the config under
    `sparsify.config`. Weights of more than 1.8 GB in all, or of more than 4 MB when packed, go to
    `model.onnx.data`.
    """

    name: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = 1e-4
    library: ClassVar[str] = "onnx"

    opset: int = 23

    def holds(self) -> frozenset[str]:
        """What stays in a program that only infers: packed weights and branches beside them."""
        return carried()

    def check(self, program: Program) -> None:
        """Refuse an operator set that cannot be written, and numbers other than float32."""
        if not _OLDEST <= self.opset <= _NEWEST:
            raise ExportError(
                f"onnx cannot be written at opset {self.opset}; choose {_OLDEST} to {_NEWEST}"
            )
        scales = {view.scales for view in block_weights(program)}
        odd = {
            str(t.dtype).removeprefix("torch.")
            for path, t in program.tensors()
            if t.is_floating_point() and t.dtype != torch.float32 and path not in scales
        }
        if odd:
            raise ExportError(
                f"onnx is written in float32, but the program holds {', '.join(sorted(odd))}; "
                "load the model in float32 or export to safetensors"
            )

    def usage(self, program: Program) -> str:
        """A session, and one run on inputs that stand for real ones."""
        feeds = [f'    "{public_name(name)}": {code},' for name, code in feeds_of(program)]
        opened = (
            "sparsify.onnxruntime_session" if packed_linears(program) else "ort.InferenceSession"
        )
        library = "sparsify" if packed_linears(program) else "onnxruntime as ort"
        return "\n".join(
            [
                f"import numpy as np\nimport {library}\n",
                f'session = {opened}("{FILE}")',
                "outputs = session.run(None, {",
                *feeds,
                "})",
            ]
        )

    def write(self, program: Program, folder: Path) -> None:
        """Write the model and the files beside it."""
        self.write_model(program, folder / FILE)
        self.write_settings(program, folder)

    def write_model(self, program: Program, path: Path) -> None:
        """Write a program to one ONNX file, heavy weights to another beside it."""
        with _quiet():
            model = _export(program, self.opset)
            self.finish(model, program)
            _describe(model, program)
            data = f"{path.name}.data" if _is_heavy(program) else None
            ir.save(
                model,
                path,
                external_data=data,
                size_threshold_bytes=_PAGE,
                alignment=_PAGE,
                align_threshold=_PAGE,
            )
        onnx.checker.check_model(str(path))

    def write_settings(self, program: Program, folder: Path) -> None:
        """Write the files from which other tools learn what the model is."""
        cls = class_named(program.source.model_class)
        if cls is not None:
            write_config(config_of(cls, program.source.config), program, folder)
        write_beside(program, folder)
        write_about(program, folder, self.name, slow_notes(program), most_tokens(program))

    def finish(self, model: ir.Model, program: Program) -> None:
        """A last rewrite of the graph; none here."""
        return None

    def read_back(self, program: Program, folder: Path) -> Reader:
        """The model on ONNX Runtime's CPU provider, with our kernels where they are built."""
        return _file_reader(self.files(program, folder), program.source.outputs)

    def read_pieces(self, program: Program, folder: Path) -> PieceReader | None:
        """The model cut at its rounded products, on the same provider."""
        return piece_reader(self.files(program, folder), program.source.outputs)

    def files(self, program: Program, folder: Path) -> list[Path]:
        """The files of a written program in the order in which they are run; one here."""
        return [folder / FILE]


def _file_reader(paths: Sequence[Path], outputs: Sequence[str]) -> Reader:
    """What runs written files one after the other, each also on what those before it gave."""
    sessions = [onnxruntime_session(path) for path in paths]

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        known = {public_name(key): value.detach().cpu().numpy() for key, value in inputs.items()}
        for session in sessions:
            known |= run_session(session, known)
        return tuple(torch.from_numpy(known[name]) for name in outputs)

    return run


def feeds_of(program: Program) -> Iterator[tuple[str, str]]:
    """Each input, and NumPy code for a value: one sequence of eight tokens."""
    for name, value in program.sample.items():
        dims = program.dynamic.get(name, {})
        shape = tuple(
            size if dim not in dims else 1 if dims[dim] == "batch" else _SHOWN
            for dim, size in enumerate(value.shape)
        )
        dtype = str(value.dtype).removeprefix("torch.")
        if name == "position_ids":
            yield name, f"np.arange({_SHOWN}, dtype=np.{dtype})[None]"
        else:
            made = "ones" if name.endswith("attention_mask") else "zeros"
            yield name, f"np.{made}({shape}, np.{dtype})"


def _is_heavy(program: Program) -> bool:
    packed = {view.weight for view in packed_linears(program)}
    packed |= {view.codes for view in block_weights(program)}
    everything = sum(tensor.nbytes for _, tensor in program.tensors())
    stored = sum(program.tensor(path).nbytes for path in packed)
    return everything > _EXTERNAL_BYTES or stored >= _EXTERNAL_PACKED_BYTES


def _export(program: Program, opset: int) -> ir.Model:
    """The program in the ONNX intermediate form; ExportError gives the first cause of a failure."""
    try:
        exported = _translated(program, opset, apart=False)
    except torch.onnx.OnnxExporterError:  # an op that only the second trace takes apart
        exported = _told(program, opset)
    assert exported is not None
    model = exported.model
    model.metadata_props.clear()
    onnx_experts.complete(model)
    onnx_packed.complete(model, opset)
    # Rotations of all layers read one table of angles, which torch.onnx makes anew for each.
    CommonSubexpressionEliminationPass()(model)
    give_every_row(model)
    # What a runtime must understand of the file, which is less than torch.onnx states.
    model.ir_version = 9 if opset <= 20 else 10
    return model


def _told(program: Program, opset: int) -> torch.onnx.ONNXProgram | None:
    try:
        return _translated(program, opset, apart=True)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()
        raise ExportError(
            f"torch.onnx could not write the program at opset {opset}: "
            f"{reason[0] if reason else type(cause).__name__}; export to safetensors"
        ) from error


def _translated(program: Program, opset: int, *, apart: bool) -> torch.onnx.ONNXProgram | None:
    return torch.onnx.export(
        captured(program, apart=apart),
        dynamic_shapes={name: program.dynamic.get(name, {}) for name in program.sample},
        input_names=[public_name(name) for name in program.sample],
        output_names=list(program.source.outputs),
        opset_version=opset,
        custom_translation_table={
            **onnx_packed.TRANSLATIONS,
            **onnx_blocks.TRANSLATIONS,
            **onnx_experts.TRANSLATIONS,
            **onnx_scan.TRANSLATIONS,
            **onnx_means.TRANSLATIONS,
            **translations(),
            **{op.function: op.onnx() for op in own_ops().values() if op.onnx is not None},
        },
        dynamo=True,
        verbose=False,
    )


def _describe(model: ir.Model, program: Program) -> None:
    """Put our metadata into an `onnx_ir` model; drop the notes on where its code stood."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props["sparsify.pipeline"] = " | ".join(program.log)
    model.metadata_props["sparsify.config"] = json.dumps(
        dict(program.source.config), default=str, sort_keys=True
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the known chatter of torch.onnx and nothing else."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with EXCLUSIVE, warnings.catch_warnings():
        for category, message in _CHATTER:
            warnings.filterwarnings("ignore", message=message, category=category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
