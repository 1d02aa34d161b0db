"""fuse: one program of a base model and its fine-tuned siblings, a token through those that know it (SMILE).

    y = W_0 x + b_0 + sum_i g_i (B_i A_i x + b_i - b_0),   g = the top of softmax_i ||R_i x|| over their sum

for every linear that some sibling has changed: `A_i [k, in], B_i [out, k]` are the leading k singular
directions of W_i - W_0, `R_i [gate, in]` the leading directions of its inputs. Nothing is trained. A linear
that only one sibling has changed gets a plain adapter, and one that none has stays as it is. Source: Tang et
al. 2024 (SMILE, 2408.10174), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.features.beside import add_beside
from sparsify.ir.features.experts import Form, Tensors, add_experts
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import adapter, expert_branches
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify
from sparsify.ir.views.linear import Linear, bias_path, out_in
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.tensors.precision import check_finite
from sparsify.tensors.siblings import Branch, branch, is_same

# Features that change no weight of a linear.
_PLAIN = frozenset({"merged-experts"})


@dataclass(frozen=True)
class Fusion:
    """How siblings are fused.

    `rank` singular directions of each difference are kept, None for all; the router looks at `gate`; `top`
    siblings serve a token. Tensors that are no targets (norms, embeddings, the head) are the `base`'s, or the
    `mean` of the siblings'. Raises OptionError for what is no whole number from 1.
    """

    rank: int | None = 32
    gate: int = 8
    top: int = 1
    others: Literal["base", "mean"] = "base"
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("gate", self.gate), ("top", self.top)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise OptionError(f"{name}={value} must be at least 1, a whole number")
        if self.others not in ("base", "mean"):
            raise OptionError(f"others={self.others} is neither base nor mean")


@dataclass(frozen=True)
class _Change:
    """What siblings have made of a linear: the branch of each that changed it, and its bias."""

    branches: tuple[Branch, ...]
    biases: tuple[Tensor, ...]


def fuse(base: Program, siblings: Sequence[Program], how: Fusion | None = None) -> Program:
    """One program of a base and its siblings; the base stays as it is.

    Raises OptionError for numbers that cannot be meant, SparsifyError for a sibling that is none (another
    graph, or a tensor of another shape or type, the first of which is named), for a program that holds what
    passes have put beside or around its weights, and for weights that are no numbers.
    """
    how = how or Fusion()
    _check(base, siblings, how)
    made = base.clone()
    uses: dict[str, list[Linear]] = {}
    for view in targeted(made, how.targets, how.ignore):
        if len(siblings) > 1:
            _check_gate(made, view, how.gate)
        uses.setdefault(view.weight, []).append(view)
    refuse_shared(
        made, [found[0] for found in uses.values()], "siblings of it cannot be told apart"
    )
    before, features = made.run(), set(made.features)
    changes = {path: _change(made, found[0], siblings, how) for path, found in uses.items()}
    for path, change in changes.items():
        if change.branches:
            features.add(_insert(made, uses[path], change, how))
    made.features = frozenset(features)
    sweep(made)
    verify(made)
    if any(not torch.equal(a, b) for a, b in zip(before, made.run(), strict=True)):
        raise SparsifyError("the branches moved the base's outputs before they were filled")
    for path, change in changes.items():
        if change.branches:
            _fill(made, uses[path][0], change)
    if how.others == "mean":
        _mean(made, siblings, _own(made, uses))
    made.log.append(
        f"fuse{{siblings={len(siblings)} rank={how.rank} gate={how.gate} top={how.top}}}"
    )
    return made


def unfused(base: Program, siblings: Sequence[Program], how: Fusion | None = None) -> list[str]:
    """The tensors that siblings have changed and fusing leaves as the base has them, in order."""
    how = how or Fusion()
    chosen = {view.weight: [view] for view in targeted(base, how.targets, how.ignore)}
    return [
        path
        for path in _own(base, chosen)
        if not all(is_same(base.tensor(path), one.tensor(path)) for one in siblings)
    ]


def check_number(how: Fusion, siblings: int) -> None:
    """There must be a sibling, and as many as are to serve a token; OptionError."""
    if not siblings:
        raise OptionError("there is no sibling to fuse; give at least one")
    if how.top > siblings:
        raise OptionError(f"top={how.top} is more than the {siblings} siblings")


def _check(base: Program, siblings: Sequence[Program], how: Fusion) -> None:
    check_number(how, len(siblings))
    _check_weights(base, "the base")
    text = to_text(base)
    for number, sibling in enumerate(siblings, 1):
        _check_weights(sibling, f"sibling {number}")
        _check_tensors(base, sibling, number)
        if to_text(sibling) != text:
            raise SparsifyError(
                f"sibling {number} has the base's tensors but computes something else with them; siblings "
                "are fine-tuned copies of one model"
            )


def _check_gate(program: Program, view: Linear, gate: int) -> None:
    """A router that sees all of an input scores every sibling by its length, which is the same for all."""
    inputs = program.tensor(view.weight).shape[0 if view.transposed else -1]
    if gate >= inputs:
        raise OptionError(
            f"gate={gate} looks at all {inputs} directions of the input of '{view.weight}', where "
            "siblings all score alike; choose fewer"
        )


def _check_weights(program: Program, name: str) -> None:
    """A weight must be all that its linear multiplies by, or what passes added would be lost."""
    held = sorted(program.features - _PLAIN)
    if held:
        raise SparsifyError(
            f"{name} holds {', '.join(held)}, which fusing would lose; fold or remove it first, or put it in "
            "after fusing"
        )
    for path, value in program.module.named_parameters():
        check_finite(value.detach(), f"'{path}' of {name}")


def _check_tensors(base: Program, sibling: Program, number: int) -> None:
    """The tensors of a sibling must be the base's, of the same types, whole numbers the same ones."""
    theirs = dict(sibling.tensors())
    for path, value in base.tensors():
        other = theirs.get(path)
        if other is None or other.shape != value.shape:
            found = "is missing" if other is None else f"is {list(other.shape)}"
            differs = f"is {list(value.shape)} in the base and {found} in it"
        elif other.dtype != value.dtype:
            differs = f"is {value.dtype} in the base and {other.dtype} in it; load both in one type"
        elif not value.is_floating_point() and not torch.equal(other.to(value.device), value):
            differs = "holds other whole numbers than in the base"
        else:
            continue
        raise SparsifyError(f"sibling {number} is none: '{path}' {differs}")


def _change(base: Program, view: Linear, siblings: Sequence[Program], how: Fusion) -> _Change:
    """What siblings have made of a linear; one that left it alone is no branch: it would only draw tokens."""
    weight, path = out_in(view, base.tensor(view.weight)), bias_path(view)
    branches, biases = [], []
    for sibling in siblings:
        mine = out_in(view, sibling.tensor(view.weight))
        moved = path is not None and not is_same(base.tensor(path), sibling.tensor(path))
        if is_same(weight, mine) and not moved:
            continue
        branches.append(branch(weight, mine, how.rank, how.gate))
        if path is not None:
            biases.append(sibling.tensor(path).detach())
    return _Change(tuple(branches), tuple(biases))


def _insert(made: Program, uses: Sequence[Linear], change: _Change, how: Fusion) -> str:
    """Put the branches beside a linear, their last factors zero yet; the feature that this adds."""
    weight, first = uses[0].weight, change.branches[0]
    zeros = [torch.zeros_like(one.b) for one in change.branches]
    if len(change.branches) == 1:
        add_beside(made, uses, dict(zip(adapter(weight), (first.a, zeros[0]), strict=True)))
        return "adapters"
    count = len(change.branches)
    form = Form(count, min(how.top, count), weight, gate=first.router.shape[0])
    biases = first.b.new_zeros(len(first.b), count) if change.biases else None
    router, a = (
        torch.cat([getattr(one, part) for one in change.branches]) for part in ("router", "a")
    )
    add_experts(made, uses, form, Tensors(router, a, torch.cat(zeros, 1), biases))
    return "experts"


def _fill(made: Program, view: Linear, change: _Change) -> None:
    """Set the last factors, and what is added to the bias."""
    path = bias_path(view)
    mine = None if path is None else made.tensor(path)
    with torch.no_grad():
        if len(change.branches) == 1:
            made.tensor(adapter(view.weight)[1]).copy_(change.branches[0].b)
            if mine is not None:
                mine.copy_(change.biases[0])
            return
        _, _, _, b, biases, _ = expert_branches(view.weight)
        made.tensor(b).copy_(torch.cat([one.b for one in change.branches], 1))
        if mine is not None:
            made.tensor(biases).copy_(torch.stack([one - mine for one in change.biases], 1))


def _own(program: Program, uses: dict[str, list[Linear]]) -> list[str]:
    """The floating-point tensors of a program that are neither targets nor their biases."""
    taken = {bias_path(view) for found in uses.values() for view in found} | uses.keys()
    return [
        path for path, value in program.tensors() if value.is_floating_point() and path not in taken
    ]


def _mean(made: Program, siblings: Sequence[Program], paths: Sequence[str]) -> None:
    with torch.no_grad():
        for path in paths:
            if all(one.has(path) for one in siblings):
                values = torch.stack([one.tensor(path).double() for one in siblings])
                made.tensor(path).copy_(values.mean(0))
