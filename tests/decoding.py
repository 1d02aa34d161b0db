"""Prompts with padding, greedy tokens without a cache, and layers of different sizes."""

import torch
from torch import Tensor

from sparsify.ir.axes.groups import heads
from sparsify.ir.axes.shrink.keep import Keep, keep_to_json
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program

PROMPTS = torch.tensor([[9, 8, 3, 7, 5, 6], [0, 0, 0, 4, 11, 20], [0, 31, 32, 7, 44, 5]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


def greedy(program: Program, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """The likeliest tokens after ids `[batch, length]`, by the program on the whole sequence each time."""
    for _ in range(tokens):
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = program.run({k: v for k, v in given.items() if k in program.sample})[0]
        ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(ids[:, :1])], 1)
    return ids


def unevenly(program: Program) -> Program:
    """The program with half of the heads gone in every layer but the first."""
    keep = Keep()
    for layer, attention in enumerate(heads(analyse(program))):
        keep.heads(attention, range(attention.size // 2 if layer else attention.size))
    shrink(program, keep)
    program.plan["axes"] = [keep_to_json(keep)]
    return program
