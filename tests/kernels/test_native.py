"""The library found, loaded and asked; what is missing or foreign is a sentence."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsify import native
from sparsify.errors import KernelError
from sparsify.tensors.packing.layout import Layout
from sparsify.tensors.packing.packed import pack

PATTERNS = [(1, 4), (2, 4), *((n, 8) for n in range(1, 8))]
VALUES = [("float32", 0), *((v, g) for v in ("int8", "int4") for g in (32, 64, 96, 128))]


def test_both_languages_count_the_same_bytes(library: Path) -> None:
    for n, m in PATTERNS:
        for values, group in VALUES:
            for columns, rows in [(1, 1), (8, 8), (100, 9), (257, 31), (4096, 4096), (2**24, 1)]:
                layout = Layout(n, m, columns, rows, values, group)
                assert native.nm_bytes(layout) == layout.nbytes, layout


def test_the_instruction_set_is_one_of_those_there_are(library: Path) -> None:
    assert native.isa() in native.available_isas()
    assert native.available_isas()[-1] == "reference"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n": 3}, "(3:4, 64 -> 8, int4, group 32): the pattern must be"),
        ({"in_features": -1}, "in_features cannot be -1"),
        ({"out_features": 2**40}, "out_features cannot be 1099511627776"),
        ({"values": "int2"}, "values must be float32, int8 or int4"),
        ({"group": 33}, "group must be"),
    ],
)
def test_impossible_sizes(change: dict[str, object], sentence: str, library: Path) -> None:
    sizes = Layout(2, 4, 64, 8, "int4", 32).__dict__ | change
    wrong = type("Wrong", (SimpleNamespace,), {"__hash__": object.__hash__})(**sizes)
    with pytest.raises(KernelError) as error:
        native.nm_bytes(wrong)
    assert sentence in str(error.value)
    with pytest.raises(KernelError) as error:
        native.nm_check(wrong, 0, 0)
    assert sentence in str(error.value)
    with pytest.raises(KernelError) as error:
        native.nm_linear(wrong, 0, 0, None, 0, 1, 0)
    assert sentence in str(error.value)


def test_wrong_bytes(library: Path) -> None:
    layout = Layout(2, 4, 64, 8, "int4", 32)
    packed = pack(
        torch.zeros(8, 64, dtype=torch.int8), layout, torch.ones(8, 2, dtype=torch.float16)
    )
    native.nm_check(layout, packed.data_ptr(), packed.numel())
    for length in (0, packed.numel() - 1, packed.numel() + 1):
        with pytest.raises(KernelError, match=f"has {length} bytes, these sizes need"):
            native.nm_check(layout, packed.data_ptr(), length)
        with pytest.raises(KernelError, match=f"has {length} bytes, these sizes need"):
            native.nm_linear(layout, packed.data_ptr(), length, None, 0, 1, 0)
    packed[1] = 0x7C
    with pytest.raises(KernelError, match="damaged: a scale is not a finite number"):
        native.nm_check(layout, packed.data_ptr(), packed.numel())
    with pytest.raises(KernelError, match="x or y was not given"):
        native.nm_linear(layout, packed.data_ptr(), packed.numel(), None, 0, 1, 0)
    with pytest.raises(KernelError, match="number of threads is -1"):
        native.nm_linear(layout, packed.data_ptr(), packed.numel(), None, 0, 1, 0, -1)


def test_callers_at_the_same_time(library: Path) -> None:
    """Threads of ours serve one caller; the others do their work themselves, and all are right."""
    layout = Layout(2, 4, 64, 200)
    weight = torch.zeros(200, 64)
    weight[:, ::2] = 1
    packed, wrong = pack(weight, layout), []

    def work(tokens: int) -> None:
        for value in range(60):
            x, y = torch.full((tokens, 64), float(value)), torch.empty(tokens, 200)
            native.nm_linear(
                layout,
                *(packed.data_ptr(), packed.numel(), None),
                *(x.data_ptr(), tokens, y.data_ptr(), 3),
            )
            if not bool((y == 32 * value).all()):
                wrong.append((tokens, value))

    callers = [threading.Thread(target=work, args=(tokens,)) for tokens in (1, 5, 40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native.ENVIRONMENT, raising=False)
    monkeypatch.setattr(native, "_BUILT", tmp_path / "none.so")
    native._load.cache_clear()
    assert native.library() is None
    with pytest.raises(KernelError, match=r"kernels are missing.*install g\+\+.*pip install"):
        native.require_library()


def test_a_named_file_that_is_none_or_foreign(
    library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "library.so"
    monkeypatch.setenv(native.ENVIRONMENT, str(named))
    assert native.library() is None
    with pytest.raises(KernelError, match="where there is no file; unset it"):
        native.require_library()
    named.write_bytes(b"no library")
    assert native.library() == named
    with pytest.raises(KernelError, match=r"cannot be loaded.*unset SPARSIFY_LIBRARY"):
        native.require_library()
    named.unlink()
    shutil.copyfile(library, named)
    assert native.require_library() == named
    assert native.isa()
    other = tmp_path / "other.so"
    shutil.copyfile(library, other)
    monkeypatch.setenv(native.ENVIRONMENT, str(other))
    monkeypatch.setattr(native, "_ABI", 99)
    with pytest.raises(KernelError, match="another version of the package"):
        native.require_library()
