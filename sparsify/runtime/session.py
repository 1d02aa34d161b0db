"""session: ONNX Runtime sessions on the processor, with the kernels for packed weights when needed."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnxruntime as ort

from sparsify import native
from sparsify.disk.hashes import check_hashes
from sparsify.errors import DataError, KernelError, reason_of

DOMAIN = "sparsify"  # of our nodes in an ONNX file
# Metadata of a file whose caches may each be one buffer, as past and as present, longer than what it holds.
SHARED_CACHE = "sparsify.shared_cache"
# Metadata of a file that gives padded rows of a batch something else than each alone.
UNPADDED = "sparsify.unpadded"
# Numbers of fields and wire types in a protobuf message of onnx.proto.
_OPSET_IMPORT, _DOMAIN = 8, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def onnxruntime_session(
    path: str | Path,
    *,
    threads: int = 0,
    require_kernels: bool = False,
    libraries: Sequence[str | Path] = (),
    settings: Mapping[str, str] | None = None,
    verify: bool = True,
) -> Any:
    """Open an ONNX file on ONNX Runtime's CPU provider, all graph optimisations on.

    A file with packed weights gets our kernels. Where they are not built, one warning says so and the
    model runs by the functions it carries, right but slow.

    Args:
        path: of the `.onnx` file.
        threads: within an op; 0 for as many as the machine has cores.
        require_kernels: refuse a file with packed weights rather than run it slowly.
        libraries: more custom-op libraries to load.
        settings: session configuration entries, as ONNX Runtime names them.
        verify: hold the files against the hashes that were written with them, where there are any.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        DataError: when the file is missing, is not what was written, or ONNX Runtime cannot open it.
        KernelError: when the kernels are required and missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"the ONNX file '{path}' does not exist; export the model first")
    if verify:
        check_hashes(path.parent)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    kernels = _kernels(require_kernels) if has_packed_weights(path) else []
    try:
        for library in (*kernels, *libraries):
            options.register_custom_ops_library(str(library))
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for every status
        raise DataError(f"ONNX Runtime cannot open '{path}': {reason_of(error)}") from error


def run_session(session: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Every output of a session by name, from those of the named values that it takes."""
    taken = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    given = {name: value for name, value in known.items() if name in taken}
    return dict(zip(names, session.run(names, given), strict=True))


def has_packed_weights(path: Path) -> bool:
    """Whether an ONNX file imports our domain; read without its weights. Any other file does not."""
    try:
        with path.open("rb") as file:
            return any(
                number == _OPSET_IMPORT and _domain(file, start, end) == DOMAIN.encode()
                for number, start, end in _fields(file, 0, path.stat().st_size)
            )
    except (ValueError, KeyError):
        return False


def _kernels(required: bool) -> list[Path]:
    """Our library, or nothing and a word about it."""
    try:
        library = native.require_library()
    except KernelError as error:
        if required:
            raise
        _say(f"{error}; until then packed weights are decoded in every run, right but slow")
        return []
    if native.isa() == "reference":
        _say(
            "there are no fast kernels for this processor: packed weights take less memory here, but "
            "a dense model is faster"
        )
    return [library]


@functools.cache
def _say(sentence: str) -> None:
    """Warn, once in a process."""
    logging.getLogger("sparsify").warning(sentence)


def _domain(file: BinaryIO, start: int, end: int) -> bytes:
    """The domain of an operator set that a model imports."""
    for number, begin, stop in _fields(file, start, end):
        if number == _DOMAIN:
            file.seek(begin)
            return file.read(stop - begin)
    return b""


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message; ValueError for bytes that are none."""
    while start < end:
        file.seek(start)
        key = _varint(file)
        kind = key & 7
        if kind == _VARINT:
            _varint(file)
        length = _varint(file) if kind == _BYTES else {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}[kind]
        begin = file.tell()
        start = begin + length
        yield key >> 3, begin, start


def _varint(file: BinaryIO) -> int:
    """A whole number of seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        (byte,) = file.read(1)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number of more than ten bytes")
