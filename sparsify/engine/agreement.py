"""Ranks of one run hold the same program, data and options: hashes are exchanged, never the tensors."""

from collections.abc import Mapping

from sparsify import ranks
from sparsify.engine.fingerprint import fingerprint
from sparsify.errors import PipelineError
from sparsify.ir.program import Program


def check_agreement(program: Program, when: str) -> None:
    """Raise PipelineError where ranks hold other programs by text, features, plan, or hash of a tensor."""
    if ranks.count() > 1:
        check_same({"program": fingerprint(program)}, when)


def check_same(told: Mapping[str, str], when: str) -> None:
    """Raise PipelineError where ranks are told different things; every rank raises it."""
    first, *others = ranks.gathered(dict(told))
    for number, other in enumerate(others, 1):
        differs = sorted(key for key in {**first, **other} if first.get(key) != other.get(key))
        if differs:
            raise PipelineError(
                f"{when} rank {number} has another {' and '.join(differs)} than rank 0; all must see the "
                "same files, and run on machines of one kind with the same versions"
            )
