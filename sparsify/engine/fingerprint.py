"""Fingerprints of programs and data: what decides the result of a run, by content."""

import hashlib
import json

from sparsify.data.domains import DomainData
from sparsify.data.sequences import Data
from sparsify.disk.hashes import of_tensor
from sparsify.ir.program import Program
from sparsify.ir.text import to_text

# At most so many sequences are looked at, spread evenly over all, so many at a time.
_SEQUENCES, _TOGETHER = 1 << 16, 256


def fingerprint(program: Program) -> str:
    """SHA-256 over the text of the graph, the plan, and the name and hash of every tensor."""
    seen = hashlib.sha256(to_text(program).encode())
    seen.update(json.dumps([sorted(program.features), program.plan], default=str).encode())
    for path, value in sorted(program.tensors(), key=lambda item: item[0]):
        seen.update(f"{path} {of_tensor(value)}\n".encode())
    return seen.hexdigest()


def data_fingerprint(data: Data | None) -> str:
    """SHA-256 over the number of sequences and the hashes of their tensors; of 65,536 if there are more.

    Of data with domains, over names, weights, and the fingerprints of what is drawn and what is held out.
    """
    if data is None:
        return "none"
    if isinstance(data, DomainData):
        return _of_domains(data)
    count = len(data)
    indices = [i * count // _SEQUENCES for i in range(_SEQUENCES)] if count > _SEQUENCES else None
    chosen = indices or list(range(count))
    seen = hashlib.sha256(f"{count} {data.length}".encode())
    for start in range(0, len(chosen), _TOGETHER):
        batch = data.batch(chosen[start : start + _TOGETHER])
        for name in sorted(batch):
            seen.update(f"{name} {of_tensor(batch[name])}\n".encode())
    return seen.hexdigest()


def _of_domains(data: DomainData) -> str:
    seen = hashlib.sha256()
    for domain in data.domains:
        parts = " ".join(data_fingerprint(part) for part in (domain.data, domain.held))
        seen.update(f"{domain.name} {domain.weight!r} {parts}\n".encode())
    return seen.hexdigest()
