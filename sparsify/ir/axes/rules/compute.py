"""Rules of ops that multiply, attend, normalise, reduce or look up."""

from typing import Any

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Attention, Axes, of_rank, over, place
from sparsify.ir.axes.axis import Axis, Conflict, product
from sparsify.ir.axes.rules.attention import repeated, softmax_site
from sparsify.ir.axes.rules.elementwise import Rule, broadcast, overloads
from sparsify.ir.ops.op import opname


def linear(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[..., out] = x[..., in] W[out, in]^T + b[out]`."""
    x, weight = analysis.axes[args["input"]], of_rank(analysis.axes[args["weight"]], 2)
    analysis.tie(node, x[-1], weight[1])
    analysis.contract(node, args["input"], x[-1], args["weight"], 1)
    if args["bias"] is not None:
        analysis.tie(node, analysis.axes[args["bias"]][0], weight[0])
    return [*x[:-1], weight[0]]


def addmm(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[n, out] = b + x[n, in] W[in, out]`."""
    result = _multiply(analysis, node, args["mat1"], args["mat2"])
    return _with_bias(analysis, node, args["self"], result)


def baddbmm(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[b, n, m] = bias + x[b, n, k] z[b, k, m]`."""
    result = _multiply(analysis, node, args["batch1"], args["batch2"])
    return _with_bias(analysis, node, args["self"], result)


def matmul(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[..., n, m] = x[..., n, k] z[..., k, m]`, leading dimensions broadcast."""
    x, z = [value for value in args.values() if isinstance(value, fx.Node)]
    if len(analysis.axes[x]) < 2 or len(analysis.axes[z]) < 2:
        raise Conflict("a product with a vector")
    result = _multiply(analysis, node, x, z)
    softmax_site(analysis, node, x, z)
    return result


def _multiply(analysis: Analysis, node: fx.Node, x: fx.Node, z: fx.Node) -> Axes:
    left, right = analysis.axes[x], analysis.axes[z]
    analysis.tie(node, left[-1], right[-2])
    if right[-2].root().size > 1:
        analysis.contract(node, x, left[-1], z, -2)
    return [*broadcast(analysis, node, [left[:-2], right[:-2]]), left[-2], right[-1]]


def _with_bias(analysis: Analysis, node: fx.Node, bias: fx.Node, result: Axes) -> Axes:
    return broadcast(analysis, node, [result, analysis.axes[bias]])


def attention(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[h, n, v] = softmax(q[h, n, d] k[g, m, d]^T * scale + mask) v[g, m, v]`, batch before."""
    query, key, value = (
        of_rank(analysis.axes[args[name]], 3) for name in ("query", "key", "value")
    )
    for one, other in ((key[-2], value[-2]), (query[-1], key[-1])):
        analysis.tie(node, one, other)
    broadcast(analysis, node, [query[:-3], key[:-3], value[:-3]])
    broadcast(analysis, node, [[key[-3]], [value[-3]]])
    made = list(repeated(analysis, args["key"])) + list(repeated(analysis, args["value"]))
    groups, heads = key[-3].root().size, query[-3].root().size
    if args["enable_gqa"] and groups != heads:
        rep = Axis(heads // groups)
        made.append(rep)
        analysis.tie(node, query[-3], product([a for a in (key[-3], rep) if a.root().size != 1]))
    else:
        analysis.tie(node, query[-3], key[-3])
    if args["attn_mask"] is not None:
        scores = [*query[:-1], key[-2]]
        broadcast(analysis, node, [scores, analysis.axes[args["attn_mask"]]])
    if args["scale"] is None:
        query[-1].pin(f"{opname(node)} at {node.name} takes its scale from the size")
    key[-2].pin(f"softmax of {opname(node)} at {node.name} runs over it")
    analysis.contract(node, args["query"], query[-1], args["key"], -1)
    analysis.sites.append(Attention(node, query[-3], key[-3], query[-1], value[-1], tuple(made)))
    return [*query[:-1], value[-1]]


def softmax(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Weights along one dimension that add up to 1."""
    axes = list(analysis.axes[args["self"]])
    axes[place(axes, args["dim"])].pin(over(node))
    analysis.softmaxes.add(node)
    return axes


def along(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """An op whose result at an index depends on the other indices of one dimension."""
    axes = list(analysis.axes[args["self"]])
    if axes:
        axes[args["dim"]].pin(over(node))
    return axes


def norm(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`layer_norm`, `rms_norm`: mean and scale over the last dimensions."""
    axes = list(analysis.axes[args["input"]])
    for back in range(1, len(args["normalized_shape"]) + 1):
        for name in ("weight", "bias"):
            if args.get(name) is not None:
                analysis.tie(node, axes[-back], analysis.axes[args[name]][-back])
        axes[-back].pin(normalising(node))
    if len(args["normalized_shape"]) == 1:
        analysis.averaged.append((axes[-1], node))
    return axes


def normalising(node: fx.Node) -> str:
    """The pin of an axis that a norm runs over."""
    return f"normalised by {opname(node)} at {node.name}"


def averaging(node: fx.Node) -> str:
    """The pin of an axis that a mean runs over."""
    return f"averaged by {opname(node)} at {node.name}"


def reduce(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """An op that folds dimensions into one number."""
    axes = analysis.axes[args["self"]]
    dims = args.get("dim")
    dims = list(range(len(axes))) if dims is None or dims == [] else dims
    folded = {place(axes, dim) for dim in ([dims] if isinstance(dims, int) else dims)}
    mean = node.target in _MEANS or args.get("mean", False)
    for dim in folded:
        axes[dim].pin(averaging(node) if mean else f"reduced by {opname(node)} at {node.name}")
    if mean and folded == {len(axes) - 1}:
        analysis.averaged.append((axes[-1], node))
    kept = [a if i not in folded else Axis(1) for i, a in enumerate(axes)]
    return [a for i, a in enumerate(kept) if i not in folded or args.get("keepdim")]


def reduce_pair(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> list[Axes]:
    """A reduction with values and positions."""
    return [reduce(analysis, node, args) for _ in node.meta["val"]]


def embedding(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Rows of a table `[entries, width]` by number."""
    entries, width = analysis.axes[args["weight"]]
    entries.pin(f"looked up by {opname(node)} at {node.name}")
    analysis.vocabularies.append(entries)
    analysis.widths.append(width)
    return [*analysis.axes[args["indices"]], width]


def index(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Entries by number; what was looked up stands where it was, or first if it stood apart."""
    axes, numbers = analysis.axes[args["self"]], args["indices"]
    looked = [dim for dim, number in enumerate(numbers) if number is not None]
    for dim in looked:
        domain = analysis.domains.get(numbers[dim])
        if domain is None:
            axes[dim].pin(f"looked up by {opname(node)} at {node.name}")
        else:
            analysis.tie(node, axes[dim], domain)
    picked = broadcast(analysis, node, [analysis.axes[numbers[dim]] for dim in looked])
    together = looked == list(range(looked[0], looked[-1] + 1))
    before = axes[: looked[0]] if together else []
    rest = [axis for dim, axis in enumerate(axes) if dim not in looked]
    return [*before, *picked, *rest[len(before) :]]


_REDUCTIONS = """
mean.dim mean.default sum.dim_IntList sum.default amax.default amin.default var.correction var.dim
std.correction std.dim any.dim any.default all.dim all.default argmax.default argmin.default
logsumexp.default linalg_vector_norm.default norm.ScalarOpt_dim prod.dim_int max.default min.default
"""

_MEANS = frozenset(overloads("mean.dim"))

COMPUTE: dict[object, Rule] = {
    **dict.fromkeys(overloads("linear.default"), linear),
    **dict.fromkeys(overloads("addmm.default"), addmm),
    **dict.fromkeys(overloads("baddbmm.default"), baddbmm),
    **dict.fromkeys(overloads("matmul.default mm.default bmm.default"), matmul),
    **dict.fromkeys(overloads("scaled_dot_product_attention.default"), attention),
    **dict.fromkeys(overloads("softmax.int _softmax.default log_softmax.int"), softmax),
    **dict.fromkeys(overloads("cumprod.default"), along),
    **dict.fromkeys(overloads("layer_norm.default rms_norm.default"), norm),
    **dict.fromkeys(overloads(_REDUCTIONS), reduce),
    **dict.fromkeys(overloads("max.dim min.dim"), reduce_pair),
    **dict.fromkeys(overloads("embedding.default"), embedding),
    **dict.fromkeys(overloads("index.Tensor"), index),
}
