"""Whether two roundings of one program agree: by the loss of tokens, or by outputs that predict none.

    max |a - b|  <=  4 max |a - u|        u: without rounding of inputs

Two right computations of a rounded program are as far apart as each is from the program that rounds no
inputs, times the root of two where their roundings have nothing in common; the rest is for outputs of few
numbers, which may by chance be near `u` all.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsify.ir.program import Program
from sparsify.ir.run.unrounded import unrounded_outputs

_MARGIN = 4.0


def strange_rounding(
    program: Program, batch: Mapping[str, Tensor], own: Sequence[Tensor], other: Sequence[Tensor]
) -> str:
    """How far other outputs are from a program's own, in words; empty when rounding explains it."""
    unrounded = unrounded_outputs(program, batch)
    for name, mine, its, smooth in zip(program.source.outputs, own, other, unrounded, strict=True):
        what = name
        if mine.shape != its.shape:
            return f"the {name} is {list(its.shape)} where {list(mine.shape)} is wanted"
        if name == program.source.outputs[0] and _predicts(batch, mine):
            what = "loss a token"
            mine, its, smooth = (_losses(batch, logits) for logits in (mine, its, smooth))
        moved, rounding = float((mine - its).abs().max()), float((mine - smooth).abs().max())
        if not moved <= _MARGIN * rounding:
            return (
                f"the {what} moves by {moved:.2g}, where rounding itself moves it by {rounding:.2g}"
            )
    return ""


def _predicts(batch: Mapping[str, Tensor], outputs: Tensor) -> bool:
    """Whether outputs `[batch, length, vocabulary]` are logits for the ids that they were made of."""
    ids = batch.get("input_ids")
    if ids is None or ids.dim() != 2 or outputs.dim() != 3 or ids.shape[1] < 2:
        return False
    return ids.shape == outputs.shape[:2] and int(ids.max()) < outputs.shape[2]


def _losses(batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
    """`-log p` of each next token, `[batch, length - 1]`; those that a mask leaves out are 0."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    losses = cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    if mask is None or mask.shape != ids.shape:
        return losses
    return losses * (mask[:, 1:] != 0) * (mask[:, :-1] != 0)
