"""The op of merged experts: the number of the cluster that each chosen expert belongs to."""

from typing import Any

from torch import Tensor, fx

from sparsify.ir.ops.op import Op


def cluster_of(numbers: Tensor, clusters: Tensor, count: int) -> Tensor:
    """`clusters[numbers]`: `clusters [experts]` holds numbers below `count`."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"there are no {count} clusters")
    return clusters[numbers]


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Each expert has an entry in `clusters`; what comes out are numbers of another axis, `count` long."""
    (numbers, clusters), count = node.all_input_nodes, node.args[2]
    (entries,) = analysis.axes[clusters]
    reason = f"the entries of @{clusters.target} are numbers of its indices"
    if numbers in analysis.domains:
        analysis.tie(node, analysis.domains[numbers], entries)
    else:
        entries.pin(f"looked up by {node.name}")
    analysis.domains[node] = analysis.fresh(count, reason)
    return list(analysis.axes[numbers])


OPS = (Op(cluster_of, "sparsify.cluster_of", _axes),)
