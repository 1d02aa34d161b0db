"""Fingerprints of programs and data: what decides the result of a run, by content."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.program import Program
from sparsify.ir.text import to_text
from sparsify.train.data import Data

# At most so many sequences are looked at, spread evenly over all, so many at a time.
_SEQUENCES, _TOGETHER = 1 << 16, 256


def fingerprint(program: Program) -> str:
    """SHA-256 over the text of the graph, the plan, and the name, type, shape and bytes of every tensor."""
    seen = hashlib.sha256(to_text(program).encode())
    seen.update(json.dumps([sorted(program.features), program.plan], default=str).encode())
    for path, value in sorted(program.tensors(), key=lambda item: item[0]):
        _add(seen, path, value)
    return seen.hexdigest()


def data_fingerprint(data: Data | None) -> str:
    """SHA-256 over the number of sequences and their tensors; of 65,536 of them where there are more."""
    if data is None:
        return "none"
    count = len(data)
    indices = [i * count // _SEQUENCES for i in range(_SEQUENCES)] if count > _SEQUENCES else None
    chosen = indices or list(range(count))
    seen = hashlib.sha256(f"{count} {data.length}".encode())
    for start in range(0, len(chosen), _TOGETHER):
        batch = data.batch(chosen[start : start + _TOGETHER])
        for name in sorted(batch):
            _add(seen, name, batch[name])
    return seen.hexdigest()


def _add(seen: Any, name: str, value: Tensor) -> None:
    seen.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
    seen.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
