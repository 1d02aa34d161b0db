"""Rotary positions that are the same for every row of a batch, as the operator wants them: a row each."""

import onnx_ir as ir

_ROTATES = "RotaryEmbedding"
# What makes tables of angles, entry by entry; the shape of what it makes is not always known.
_ENTRYWISE = {"Cos", "Sin", "Cast", "Mul"}


def give_every_row(model: ir.Model) -> None:
    """Tables `[1, length, size]` of a rotation become `[batch, length, size]`, once for all that read one.

        RotaryEmbedding(X, C, S)  ->  RotaryEmbedding(X, Expand(C, [batch, 1, 1]), Expand(S, [batch, 1, 1]))

    The operator of opset 23 broadcasts nothing. A model that is not asked for positions has them once.
    """
    given: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != _ROTATES or node.domain or len(node.inputs) != 3:
            continue
        x = node.inputs[0]
        if x is None or x.shape is None or x.shape[0] == 1:
            continue
        for place, table in enumerate(node.inputs[1:], start=1):
            if table is None or _rows(table) != 1:
                continue
            if table not in given:
                given[table] = _repeated(model.graph, node, table, x)
            node.replace_input_with(place, given[table])


def _rows(table: ir.Value | None) -> object:
    """How many rows a table has; None where that is not known."""
    while table is not None and table.shape is None:
        node = table.producer()
        table = node.inputs[0] if node is not None and node.op_type in _ENTRYWISE else None
    return None if table is None or table.shape is None else table.shape[0]


def _repeated(graph: ir.Graph, place: ir.Node, table: ir.Value, like: ir.Value) -> ir.Value:
    """`table` as often as `like` has rows; what counts them stands before `place`."""
    ones = ir.node("Constant", [], {"value_ints": [1, 1]})
    rows = ir.node("Shape", [like], {"start": 0, "end": 1})
    sizes = ir.node("Concat", [rows.outputs[0], ones.outputs[0]], {"axis": 0})
    made = ir.node("Expand", [table, sizes.outputs[0]])
    graph.insert_before(place, [ones, rows, sizes, made])
    return made.outputs[0]
