"""What a step of training will take on each rank, counted on tensors that have shapes and no values.

    peak = weights + moments + others + max over pieces j of (activations up to j + gradients from j)

Pieces are those of `sparsify.ir.run.segments`: going back, a piece gives up its activations and makes the
gradients of its weights. What libraries and the interpreter take comes on top.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from sparsify.ir.facts.multiply_adds import fake_inputs, multiply_adds
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.run.head import find_head
from sparsify.ir.run.segments import Segment, run_segments
from sparsify.train.chunks import logits_at_a_time
from sparsify.train.settings import Recompute
from sparsify.train.units import matrix_masks, read_once


@dataclass(frozen=True)
class Ranks:
    """On how many ranks, and whether parameters are cut over them (FSDP2) or whole on each (DDP)."""

    count: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class Step:
    """A step: sequences of `length` tokens, `batch` of them at a time over all ranks, `accumulate` times.

    `update` says what learns, as `select_trainable` has it; `moments` are numbers that the optimiser keeps
    for each that does, `twin` the bytes of a dense twin.
    """

    batch: int
    length: int
    accumulate: int = 1
    recompute: Recompute = "none"
    bf16: bool = False
    update: str = "all"
    moments: int = 2
    twin: int = 0


@dataclass(frozen=True)
class Plan:
    """Bytes on the fullest rank, bytes that it sends in a step, and multiply-adds of all ranks in a step.

    `gathered` are weights that are whole for a time though cut over the ranks, with their gradients;
    `activations` the most that is kept for the backward pass, `peak` the most of all at a time.
    """

    parameters: int
    learned: int
    weights: int
    gathered: int
    gradients: int
    moments: int
    others: int
    activations: int
    peak: int
    sent: int
    multiply_adds: int


def plan(program: Program, step: Step, ranks: Ranks) -> Plan:
    """What a step takes; which parameters learn is read off `requires_grad`.

    Raises SparsifyError where sizes are known only at run time.
    """
    seen = _Seen(program)
    each = -(-step.batch // ranks.count)
    set_training(program.module, True)
    try:
        with seen.mode, torch.autocast("cpu", torch.bfloat16, enabled=step.bf16):
            inputs = fake_inputs(program, each, step.length, seen.mode)
            run_segments(program.module, inputs, every=None, units=seen)
    finally:
        set_training(program.module, False)
    parameters = dict(program.module.named_parameters())
    learned = [value for value in parameters.values() if value.requires_grad]
    whole, taught = _bytes(parameters.values()), _bytes(learned)
    share = ranks.count if ranks.sharded else 1
    buffers, masks, twin = _bytes(program.module.buffers()), 0, step.twin
    # DDP sends gradients from buckets of its own.
    buckets = 0 if ranks.sharded or ranks.count == 1 else taught
    gathered = 0
    if share > 1:
        masks, gathered = seen.masks(), seen.gathered()
        buffers -= masks - masks // share
        # Gathered by the same pieces: in numbers of another size, and without masks.
        twin = twin // share + seen.gathered(masks=False) * twin // whole
    kept, height = seen.heights(step.recompute, share)
    weights, moments = whole // share, step.moments * taught // share
    forward = multiply_adds(program, step.batch, step.length)
    loss = _logits(program, each * step.length)
    passes = (3 if step.recompute == "none" else 4) + (1 if step.twin else 0)
    return Plan(
        parameters=sum(value.numel() for value in parameters.values()),
        learned=sum(value.numel() for value in learned),
        weights=weights,
        gathered=gathered,
        gradients=taught // share,
        moments=moments,
        others=buffers + buckets + twin,
        activations=kept,
        peak=weights + gathered + moments + buffers + buckets + twin + height + loss,
        sent=_sent(2 * (whole + masks) + step.twin, taught, ranks, step.accumulate),
        multiply_adds=passes * forward * step.accumulate,
    )


def _sent(gathered: int, taught: int, ranks: Ranks, accumulate: int) -> int:
    """Bytes that a rank sends: gradients are added up, and what is cut is gathered in each micro-batch."""
    part = (ranks.count - 1) / ranks.count
    if not ranks.sharded:
        return int(2 * taught * part)
    return int((gathered * accumulate + taught) * part)


def _logits(program: Program, tokens: int) -> int:
    """Bytes of the logits that the loss has at a time, and of their gradients."""
    head = find_head(program)
    if head is None or head.weight.meta.get("val") is None:
        return 0
    return 2 * 4 * logits_at_a_time(tokens, int(head.weight.meta["val"].shape[0]))


def _bytes(tensors: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


class _Seen:
    """Runs pieces on fakes of the parameters, and notes what each keeps and which weights it reads."""

    def __init__(self, program: Program) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._fakes: dict[str, Tensor] = {}
        held: dict[int, Tensor] = {}
        for path, value in program.module.state_dict(keep_vars=True).items():
            fake = held.get(id(value))
            if fake is None:
                fake = self.mode.from_tensor(value.detach(), static_shapes=True)
                held[id(value)] = fake.requires_grad_(value.requires_grad)
            self._fakes[path] = held[id(value)]
        self._learnable = dict(program.module.named_parameters(remove_duplicate=False)).keys()
        self._matrices = matrix_masks(program.module).keys()
        self._stored = {_storage(value) for value in self._fakes.values()}
        self._kept: list[int] = []
        self._borders: list[int] = []
        self._weights: list[dict[int, Tensor]] = []
        self._masks: list[dict[int, Tensor]] = []
        self._known: set[int] = set()

    def tensor(self, path: str) -> Tensor | None:
        """The fake of a tensor."""
        return self._fakes.get(path)

    def call(self, piece: Segment, run: Callable[..., Any], values: Sequence[Any]) -> Any:
        """What a piece gives, its saved tensors noted."""
        kept = 0

        def pack(value: Tensor) -> Tensor:
            nonlocal kept
            place = _storage(value)
            if place not in self._stored and place not in self._known:
                self._known.add(place)
                kept += value.untyped_storage().nbytes()
            return value

        with saved_tensors_hooks(pack, lambda value: value):
            given = run(*values)
        self._kept.append(kept)
        crossing = [v for v in values if isinstance(v, Tensor) and v.requires_grad]
        self._borders.append(_bytes(crossing))
        for found, paths in ((self._weights, self._learnable), (self._masks, self._matrices)):
            read = (self._fakes[path] for path in piece.tensors if path in paths)
            found.append({id(value): value for value in read})
        return given

    def masks(self) -> int:
        """Masks that are cut over the ranks where parameters are."""
        return sum(_alone(self._masks))

    def gathered(self, *, masks: bool = True) -> int:
        """What is whole at a time where tensors are cut: those of two pieces, and weights of no unit.

        In a unit is what one piece alone reads, but for the last; see `sparsify.train.units`. What is
        gathered or added up is copied, so that the largest of them is there twice more. Without `masks` of
        weights alone.
        """
        known = {key: value for each in self._weights for key, value in each.items()}
        weights = _alone(self._weights)
        rest = _bytes(known.values()) - sum(weights)
        units = weights
        if masks:
            units = [sum(both) for both in zip(weights, _alone(self._masks), strict=True)]
        return rest + sum(sorted(units)[-2:]) + 2 * max(rest, *units)

    def heights(self, recompute: Recompute, share: int) -> tuple[int, int]:
        """The most activations at a time, and the most of activations and gradients together."""
        again = recompute == "layers"
        kept = [*self._borders[:-1], self._kept[-1]] if again else self._kept
        alone = self._last_read()
        taught = [_bytes(v for v in each.values() if v.requires_grad) for each in alone]
        most = highest = 0
        for place in range(len(kept)):
            inside = self._kept[place] if again and place + 1 < len(kept) else 0
            held = sum(kept[: place + 1]) + inside
            made = sum(taught[place + 1 :]) // share + taught[place]
            most, highest = max(most, held), max(highest, held + made)
        return most, max(highest, sum(taught) // share)

    def _last_read(self) -> list[Mapping[int, Tensor]]:
        """The weights of each piece that it is the last to read: its gradient is done there, going back."""
        found: list[Mapping[int, Tensor]] = []
        before: set[int] = set()
        for each in self._weights:
            found.append({key: value for key, value in each.items() if key not in before})
            before |= each.keys()
        return found


def _alone(read: Sequence[Mapping[int, Tensor]]) -> list[int]:
    """Bytes of what each piece but the last reads alone."""
    known = {key: value for each in read for key, value in each.items()}
    return [_bytes(known[key] for key in own) for own in read_once(read)]


def _storage(value: Tensor) -> int:
    place: int = value.untyped_storage()._cdata
    return place
