"""Mixtures: the tensors of the experts behind a router's choice."""

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import groups
from sparsify.ir.graph import sources
from sparsify.ir.views.router import probe_of


def expert_tensors(analysis: Analysis, router: Router) -> dict[str, int]:
    """The dimension of the experts in each tensor behind a router's choice, by path.

    Raises OptionError where experts do not lie apart in a tensor, or have none.
    """
    before = {str(node.target) for node in sources(router.node) if node.op == "get_attr"}
    probe = probe_of(router.node)
    before |= set() if probe is None else set(probe.statistics)
    leaf = router.axis.root()
    (group,) = (group for group in groups(analysis) if group.leaf is leaf)
    found: dict[str, int] = {}
    for member in group.members:
        if member.path in before:
            continue
        if member.axis.root() is not leaf or member.path in found:
            raise OptionError(f"@{member.path} does not hold the experts of @{router.weight} apart")
        found[member.path] = member.dim
    if not found:
        raise OptionError(f"the experts of @{router.weight} have no tensor of their own")
    return found
