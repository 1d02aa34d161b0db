"""What a router chose: the numbers that its top-k gives, and the probe that watches them."""

import operator

import torch
from torch import fx

from sparsify.ir.views.probe import Probe, probe_at


def numbers_of(choice: fx.Node) -> list[fx.Node]:
    """The nodes of the numbers `[tokens, k]` that a top-k chose."""
    return [n for n in choice.users if n.target is operator.getitem and n.args[1] == 1]


def masked_scores(choice: fx.Node, scores: fx.Node) -> fx.Node:
    """The scores that a top-k follows from, those of experts that a mask leaves out -inf."""
    node = choice.all_input_nodes[0]
    while node is not scores and node.target is not torch.ops.aten.where.ScalarOther:
        node = node.all_input_nodes[0]
    return node


def probe_of(choice: fx.Node) -> Probe | None:
    """The probe that watches what a top-k chose."""
    users = (user for node in numbers_of(choice) for user in node.users)
    return next((found for user in users if (found := probe_at(user)) is not None), None)
