"""The last line of a run: what became of the model, from figures that the exports hold."""

from collections.abc import Iterable
from pathlib import Path

import torch

from sparsify.describe.facts import Facts, Share, read_facts
from sparsify.disk.files import folder_bytes


def summary(model: str, dtype: str, out: Path, formats: Iterable[str], seconds: float) -> str:
    """One sentence: parameters before and after, zeros of the linears, sizes, time, and where it is.

    The size before is that of the parameters as numbers of `dtype`, those after are of the format folders.
    """
    names = list(formats)
    found = read_facts(out / names[0])
    if found is None:  # of an exporter of another package
        return f"{model}, in {seconds:.0f} s: {out}"
    sizes = [f"{_megabytes(folder_bytes(out / name))} MB ({name})" for name in names]
    before = _megabytes(found.were * getattr(torch, dtype).itemsize)
    parts = (_parameters(found), _zeros(found), f"{before} -> {', '.join(sizes)}")
    return f"{model}: {', '.join(part for part in parts if part)}, in {seconds:.0f} s: {out}"


def _parameters(found: Facts) -> str:
    return f"{_millions(found.were)} -> {_millions(found.parameters)} parameters"


def _zeros(found: Facts) -> str:
    share = Share.of(found.weights).zero
    return f"{100 * share:.0f} % zeros" if share else ""


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 10_000 else f"{number:,}"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f}" if number >= 100_000 else f"{number / 1e6:.3f}"
