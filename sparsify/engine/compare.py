"""An export held against its program: what was written is read back, run, and must give the same."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsify.engine.contract import Exporter, Moves, Reader
from sparsify.errors import ExportError, SparsifyError, reason_of
from sparsify.ir.inputs import default_input
from sparsify.ir.program import Program
from sparsify.ir.run.agreement import strange_rounding
from sparsify.ir.run.double import is_rounding
from sparsify.ir.run.pieces import PieceReader, run_in_pieces, strange_piece
from sparsify.ir.run.unrounded import rounds_inputs
from sparsify.tensors.precision import relative_difference


def compare_export(exporter: Exporter, program: Program, folder: Path) -> None:
    """Run what was written on the sample inputs and on a second batch of another size and length.

    Outputs may differ by the exporter's `tolerance` of the largest, scaled by their precision, or by what
    float32 rounds off on the way. A program that rounds inputs is compared in pieces too, and its outputs
    may be as far apart as rounding itself moves them. Raises ExportError for what differs.
    """
    both = {"the sample": program.sample, "a second": second_batch(program)}
    reader = exporter.read_back(program, folder)
    pieces = exporter.read_pieces(program, folder) if rounds_inputs(program) else None
    for what, inputs in both.items():
        found = _read(exporter, program, reader, what, inputs)
        if pieces is not None:
            _check_pieces(exporter, program, pieces, what, inputs)
        _check_outputs(exporter, program, what, inputs, found)


def _read(
    exporter: Exporter, program: Program, reader: Reader, what: str, inputs: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    try:
        found = reader(inputs)
    except SparsifyError:
        raise
    except Exception as error:
        raise ExportError(
            f"{exporter.name} was written but does not run on {what} batch: {reason_of(error)}"
        ) from error
    wanted = len(program.source.outputs)
    if len(found) != wanted:
        raise ExportError(
            f"{exporter.name} was written, but read back it gives {len(found)} outputs on {what} "
            f"batch where the program has {wanted}"
        )
    return found


def _check_pieces(
    exporter: Exporter, program: Program, reader: PieceReader, what: str, inputs: dict[str, Tensor]
) -> None:
    allowed = Moves(graph=True, tolerance=exporter.tolerance).allowed(torch.float32)
    for row in _rows(program, inputs):
        own, given = run_in_pieces(program, row)
        strange = strange_piece(own, reader(row, given), allowed)
        if strange:
            raise ExportError(
                f"{exporter.name} was written, but read back it is another model: {strange} ({what} batch)"
            )


def _rows(program: Program, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The sequences of a batch one by one, where every input has one: all that some formats take."""
    if any(program.dynamic.get(name, {}).get(0) != "batch" for name in inputs):
        yield dict(inputs)
        return
    for row in range(len(next(iter(inputs.values())))):
        yield {name: value[row : row + 1] for name, value in inputs.items()}


def _check_outputs(
    exporter: Exporter,
    program: Program,
    what: str,
    inputs: dict[str, Tensor],
    found: Sequence[Tensor],
) -> None:
    wanted = program.run(inputs)
    for name, a, b in zip(program.source.outputs, wanted, found, strict=True):
        allowed = Moves(graph=True, tolerance=exporter.tolerance).allowed(a.dtype)
        difference = relative_difference(a, b)
        if difference <= allowed:
            continue
        why = f"the difference is {difference:.2g} of the largest value, allowed is {allowed:.2g}"
        if rounds_inputs(program):
            strange = strange_rounding(program, inputs, wanted, found)
            if not strange:
                return  # which speaks of all outputs
            why = strange
        elif is_rounding(program, inputs, wanted, found):
            return
        raise ExportError(
            f"{exporter.name} was written, but read back it gives another {name} of {what} batch: {why}"
        )


def second_batch(program: Program) -> dict[str, Tensor]:
    """Inputs of another batch size and other lengths than the sample, made from its values.

    Lengths shrink where they can, so that models with few positions take them; the first sequence
    ends in one padded place. Sizes of dimensions that do not vary stay.
    """
    sizes: dict[str, int] = {}
    for name, dims in program.dynamic.items():
        for dim, axis in dims.items():
            size = program.sample[name].shape[dim]
            sizes[axis] = size + 1 if axis == "batch" or size < 4 else size - 1
    for axis in [axis for axis in sizes if "+" in axis]:
        sizes[axis] = sum(sizes[part] for part in axis.split("+"))
    batch = {}
    for name, value in program.sample.items():
        for dim, axis in program.dynamic.get(name, {}).items():
            index = torch.arange(sizes[axis], device=value.device) % value.shape[dim]
            value = value.index_select(dim, index)
        batch[name] = _sensible(name, value)
    return batch


def _sensible(name: str, value: Tensor) -> Tensor:
    """Values moved by one place; masks and positions as for tokens with one padded place."""
    if name.endswith("attention_mask") and value.dim() == 2:
        value = default_input(name, value)
        value[0, -1] = 0
        return value
    if name in ("position_ids", "token_type_ids") and value.dim() == 2:
        return default_input(name, value)
    return value.roll(1, dims=-1).contiguous()
