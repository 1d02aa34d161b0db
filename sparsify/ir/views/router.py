"""What a router chose: the numbers that its top-k gives, and the probe that watches them."""

import operator

from torch import fx

from sparsify.ir.views.probe import Probe, probe_at


def numbers_of(choice: fx.Node) -> list[fx.Node]:
    """The nodes of the numbers `[tokens, k]` that a top-k chose."""
    return [n for n in choice.users if n.target is operator.getitem and n.args[1] == 1]


def probe_of(choice: fx.Node) -> Probe | None:
    """The probe that watches what a top-k chose."""
    users = (user for node in numbers_of(choice) for user in node.users)
    return next((found for user in users if (found := probe_at(user)) is not None), None)
