"""Hold a program that was traced against its model: at other shapes, with padding, twice."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sparsify.errors import TraceError, reason_of
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.trace.exported import Exported, named_outputs
from sparsify.tensors.precision import relative_difference

# How far an output may be from the model's, of the largest: models take other kernels when they are traced.
_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
# Tokens up to which the end of what a model takes is tried.
_FAR = 8192
# (batch, how much longer than the sample the other dimensions are, whether rows are padded)
_TRIALS = ((3, 4, True), (1, -4, False))


def check_traced(
    program: Program, model: nn.Module, fixed: Mapping[str, Any], shapes: Mapping[str, Any]
) -> None:
    """Compare the program with the model in evaluation mode, at two shapes, each twice.

    The shapes are three rows that are longer than the sample, one padded on the left and one on the right,
    and one shorter row; `shapes` are the dimensions that the export took. Where the model itself takes
    neither, they are compared on the sample. A model without numbers is not compared. Raises TraceError
    naming the output and the difference.
    """
    if not _has_numbers(model):
        return
    with evaluating(model), torch.no_grad():
        trials = [_compared(program, model, fixed, *trial) for trial in _batches(program, shapes)]
        if not any(trials):
            _compared(program, model, fixed, program.sample, "the sample")


def reach_ends(
    program: Program, model: nn.Module, fixed: Mapping[str, Any], exported: Exported
) -> None:
    """Lift limits that stop one short of what was asked for, where the program is the model there too.

    A table of positions that is cut to the length is not cut at its own: other code, which does the same.
    """
    for name, (_, most) in list(program.limits.items()):
        asked = exported.asked[name]
        if most + 1 != asked or asked > _FAR or not _has_numbers(model):
            continue
        sizes = dict(_sizes(program, exported.shapes, 1, 0))
        inputs = {key: _resized(program, key, {**sizes, name: most + 1}) for key in program.sample}
        with evaluating(model), torch.no_grad(), contextlib.suppress(TraceError):
            if _compared(program, model, fixed, inputs, f"{name} {most + 1}"):
                del program.limits[name]


def _has_numbers(model: nn.Module) -> bool:
    return not any(value.is_meta or isinstance(value, FakeTensor) for value in model.parameters())


def _compared(
    program: Program,
    model: nn.Module,
    fixed: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    where: str,
) -> bool:
    """Compare on one batch; False where the model itself refuses it."""
    try:
        wanted = named_outputs(model(**inputs, **fixed))
    except (RuntimeError, IndexError, ValueError):
        return False
    first, again = _run(program, inputs, where), _run(program, inputs, where)
    name = type(model).__name__
    _compare(wanted, first, f"the program of {name} is not {name}", where)
    _compare(first, again, f"the program of {name} gives other outputs each time", where)
    return True


def _run(program: Program, inputs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    try:
        return dict(zip(program.source.outputs, program.module(**inputs), strict=True))
    except Exception as error:
        model = program.source.model_class
        raise TraceError(
            f"the program of {model} does not run at {where}, where the model does: {reason_of(error)[:200]} "
            "(give a fixed input shape, or check=False to have the program as it is)"
        ) from error


def _compare(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, where: str
) -> None:
    for name, value in wanted.items():
        moved = relative_difference(value, found[name])
        if not moved <= _TOLERANCE.get(value.dtype, 1e-4):
            raise TraceError(
                f"{what}: at {where} its output '{name}' differs by {moved:.1e} of the largest "
                "(try attn_implementation='eager', or check=False to have the program as it is)"
            )


def _batches(
    program: Program, shapes: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Tensor], str]]:
    """The inputs of each trial, with words for their shape."""
    for batch, longer, padded in _TRIALS:
        sizes = dict(_sizes(program, shapes, batch, longer))
        inputs = {key: _resized(program, key, sizes) for key in program.sample}
        words = [f"{name} {size}" for name, size in sizes.items()] or ["the sample's shape"]
        if padded and (masks := [key for key in inputs if _is_mask(key, inputs[key])]):
            for key in masks:
                inputs[key] = _padded(inputs[key])
            words.append("padding on either side")
        yield inputs, ", ".join(words)


def _sizes(
    program: Program, shapes: Mapping[str, Any], batch: int, longer: int
) -> Iterator[tuple[str, int]]:
    """Symbolic dimensions and their sizes in a trial, within what the export took."""
    for key, dims in program.dynamic.items():
        for dim, name in dims.items():
            taken = shapes[key][dim]
            wanted = batch if name == "batch" else program.sample[key].shape[dim] + longer
            root = getattr(taken, "root", None)
            if root is not None:  # a multiple of a dimension: the next one that is such
                step = taken.fn(2) - taken.fn(1)
                root_size = max(int(root.min), (wanted - taken.fn(0)) // step)
                yield name, int(taken.fn(min(root_size, int(root.max))))
            else:
                yield name, max(int(taken.min), min(wanted, int(taken.max)))


def _resized(program: Program, key: str, sizes: Mapping[str, int]) -> Tensor:
    """An input in other sizes: entries of the sample in another order, some of them again."""
    value = program.sample[key]
    for dim, name in program.dynamic.get(key, {}).items():
        steps = torch.arange(sizes[name], device=value.device)
        value = value.index_select(dim, (steps + 1) % value.shape[dim])
    if key == "position_ids" and value.dim() == 2:
        return torch.arange(value.shape[1], device=value.device).expand(value.shape).contiguous()
    return torch.ones_like(value) if _is_mask(key, value) else value


def _is_mask(key: str, value: Tensor) -> bool:
    return key.endswith("attention_mask") and value.dim() == 2 and not value.is_floating_point()


def _padded(mask: Tensor) -> Tensor:
    """The first row padded on the left, the second on the right, by a third."""
    mask, gone = mask.clone(), max(1, mask.shape[1] // 3)
    mask[0, :gone] = 0
    mask[1:2, -gone:] = 0
    return mask
