"""native: the compiled kernels of `kernels/`, found, loaded and called.

`pip install` builds them into `sparsify/_native` when a C++ compiler is there. The same file is the operator
library of ONNX Runtime (`options.register_custom_ops_library(str(require_library()))`) and, through its C
interface (`kernels/include/sparsify_kernels.h`), what torch calls. The environment variable
`SPARSIFY_LIBRARY` names another file, `SPARSIFY_ISA` an instruction set.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Protocol

from sparsify.errors import KernelError

ENVIRONMENT = "SPARSIFY_LIBRARY"
_ABI = 1  # of sparsify_kernels.h, like the order of the values
_VALUES = ("float32", "int8", "int4")
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_BUILT = Path(__file__).parent / "_native" / f"libsparsify_kernels{_SUFFIX}"
_MESSAGE_BYTES = 512


class Sizes(Hashable, Protocol):
    """What the kernels must know of a packed W [out, in]; `sparsify.tensors.packing.layout.Layout` is one."""

    @property
    def n(self) -> int:
        """Entries stored of each group of `m` columns."""

    @property
    def m(self) -> int:
        """Columns of a group."""

    @property
    def in_features(self) -> int:
        """Columns of W."""

    @property
    def out_features(self) -> int:
        """Rows of W."""

    @property
    def values(self) -> str:
        """`float32`, `int8` or `int4`."""

    @property
    def group(self) -> int:
        """Columns that share a scale; 0 for float32."""


def library() -> Path | None:
    """Return the compiled library, or None when there is none."""
    path = Path(os.environ.get(ENVIRONMENT) or _BUILT)
    return path if path.is_file() else None


def require_library() -> Path:
    """Return the compiled library; KernelError when it is missing or cannot be loaded."""
    _kernels()
    return Path(os.environ.get(ENVIRONMENT) or _BUILT)


def isa() -> str:
    """Return the instruction set that the kernels use here, for example `avx2`; KernelError."""
    return str(_kernels().sparsify_isa().decode())


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this processor could use, best first; KernelError."""
    return tuple(_kernels().sparsify_isas().decode().split())


def nm_bytes(sizes: Sizes) -> int:
    """Return the bytes of a packed weight; KernelError when no weight has such sizes."""
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    count = int(_kernels().sparsify_nm_bytes(_struct(sizes), message, _MESSAGE_BYTES))
    if count < 0:
        raise KernelError(message.value.decode(errors="replace"))
    return count


def nm_check(sizes: Sizes, packed: int, packed_bytes: int) -> None:
    """Read a packed weight through: its length, and damage as far as it shows; KernelError.

    Args:
        sizes: of W.
        packed: address of uint8 [packed_bytes], alive until this returns.
        packed_bytes: its length.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    check = _kernels().sparsify_nm_check
    if check(_struct(sizes), packed, packed_bytes, message, _MESSAGE_BYTES):
        raise KernelError(message.value.decode(errors="replace"))


def nm_linear(
    sizes: Sizes,
    packed: int,
    packed_bytes: int,
    bias: int | None,
    x: int,
    tokens: int,
    y: int,
    threads: int = 1,
) -> None:
    """Compute `y[t, o] = sum_k W[o, k] x[t, k] + b[o]` with a packed W [out, in]; docs/packed.md.

    What the addresses hold must be contiguous and stay alive, and y must overlap nothing, until this
    returns. Python's lock is free meanwhile.

    Args:
        sizes: of W.
        packed: address of uint8 [packed_bytes]; any content is safe.
        packed_bytes: its length.
        bias: address of b, float32 [out], or None.
        x: address of float32 [tokens, in].
        tokens: rows of x and y.
        y: address of float32 [tokens, out], written.
        threads: the most to use, the caller being one; 0 for as many as the machine has.

    Raises:
        KernelError: when the library is missing, no weight has such sizes, it has another length than
            they need, or memory is short.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    run = _kernels().sparsify_nm_linear
    if run(
        _struct(sizes), packed, packed_bytes, bias, x, tokens, y, threads, message, _MESSAGE_BYTES
    ):
        raise KernelError(message.value.decode(errors="replace"))


class _Struct(ctypes.Structure):
    """The `sparsify_nm` of the C interface."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "m", "in_features", "out_features", "group", "values")
    ]


@functools.lru_cache(maxsize=1024)
def _struct(sizes: Sizes) -> _Struct:
    values = _VALUES.index(sizes.values) if sizes.values in _VALUES else -1
    return _Struct(sizes.n, sizes.m, sizes.in_features, sizes.out_features, sizes.group, values)


def _kernels() -> ctypes.CDLL:
    return _load(os.environ.get(ENVIRONMENT, ""))


@functools.cache
def _load(named: str) -> ctypes.CDLL:
    """Load the library and check that it is ours; `named` is the value of the environment variable."""
    path = Path(named or _BUILT)
    if not path.is_file():
        raise KernelError(_missing(named))
    mend = f"unset {ENVIRONMENT}" if named else "reinstall the package"
    try:
        kernels = ctypes.CDLL(str(path))
        found = int(kernels.sparsify_abi())
    except (OSError, AttributeError) as error:
        raise KernelError(f"the kernels '{path}' cannot be loaded ({error}); {mend}") from None
    if found != _ABI:
        raise KernelError(
            f"the kernels '{path}' were built for another version of the package (interface {found}, "
            f"not {_ABI}); {mend}"
        )
    _declare(kernels)
    return kernels


def _missing(named: str) -> str:
    if named:
        return f"{ENVIRONMENT} names '{named}', where there is no file; unset it"
    return (
        "the compiled N:M kernels are missing: installing the package builds them where it finds a C++17 "
        "compiler; install g++ or clang++, then install the package once more with 'pip install "
        "--force-reinstall --no-deps --no-cache-dir' (--verbose shows what the compiler says)"
    )


def _declare(kernels: ctypes.CDLL) -> None:
    """State the arguments and results of the C functions."""
    size, address = ctypes.c_size_t, ctypes.c_void_p
    said: list[Any] = [ctypes.c_char_p, size]
    sizes: list[Any] = [ctypes.POINTER(_Struct)]
    packed = [*sizes, address, size]
    product = [*packed, address, address, size, address, ctypes.c_int32]
    for name, arguments, result in (
        ("isa", [], ctypes.c_char_p),
        ("isas", [], ctypes.c_char_p),
        ("nm_bytes", [*sizes, *said], ctypes.c_int64),
        ("nm_check", [*packed, *said], ctypes.c_int32),
        ("nm_linear", [*product, *said], ctypes.c_int32),
    ):
        function = getattr(kernels, f"sparsify_{name}")
        function.argtypes, function.restype = arguments, result
