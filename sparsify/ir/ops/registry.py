"""The ops that may stand in graphs beside ATen's: our own, each in its file, and those of other packages."""

import re
from collections.abc import Mapping
from typing import Any

from sparsify.errors import SparsifyError
from sparsify.ir.ops import (
    block_linear,
    cluster_of,
    decayed_mean,
    kept_neurons,
    masked_norms,
    neighbours,
    nm_linear,
    packed_experts,
    probe,
    rounding,
    scale_weight,
    state_scan,
)
from sparsify.ir.ops.op import Op

ALL = (
    *probe.OPS,
    *kept_neurons.OPS,
    *masked_norms.OPS,
    *scale_weight.OPS,
    *rounding.OPS,
    *nm_linear.OPS,
    *block_linear.OPS,
    *packed_experts.OPS,
    *cluster_of.OPS,
    *neighbours.OPS,
    *state_scan.OPS,
    *decayed_mean.OPS,
)
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,2}")
_BY_NAME: dict[str, Op] = {}
_BY_FUNCTION: dict[Any, Op] = {}


def register(op: Op) -> Op:
    """Let an op stand in programs; SparsifyError for a name that is taken, or is none."""
    if _NAME.fullmatch(op.name) is None or op.name.startswith(("aten.", "prims.")):
        raise SparsifyError(f"'{op.name}' is no name for an op; use library.word in small letters")
    held = _BY_NAME.get(op.name)
    if held is not None and held.function is not op.function:
        raise SparsifyError(f"two ops are called '{op.name}'; rename one")
    _BY_NAME[op.name] = _BY_FUNCTION[op.function] = op
    return op


def own_ops() -> Mapping[str, Op]:
    """Every registered op by its stored name."""
    return dict(_BY_NAME)


def op_named(name: str) -> Op | None:
    """The registered op of a stored name."""
    return _BY_NAME.get(name)


def op_of(target: Any) -> Op | None:
    """The registered op that a node calls."""
    try:
        return _BY_FUNCTION.get(target)
    except TypeError:  # what cannot be hashed is no op
        return None


for _op in ALL:
    register(_op)
