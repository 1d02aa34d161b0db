"""pack-dense: store rounded weights without zeros as codes and scales.

    linear(R(x), Q(W, scales), b)    ->  block_linear(x, codes, scales, b)
    embedding(Q(W, scales), ids)     ->  block_embedding(ids, codes, scales)

`W [out, in]`; codes uint8 `[out, blocks, bytes]` and scales float16 `[out, blocks]`, laid out as in
docs/packed.md, `MatMulNBits` and `GatherBlockQuantized` in ONNX Runtime. They are unpacked again and compared
bit for bit with the rounded weight before that is dropped. A head tied to a table shares what is stored.
The rounding itself is that of `choose-scales`: outputs stay within 1e-5.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.packed_dense import block_a_linear, block_a_table
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import tables
from sparsify.ir.views.linear import products
from sparsify.pack.dense import Blocked, blocked
from sparsify.pack.nm import shrunk


@dataclass(frozen=True)
class PackDense(Pass):
    """Pack every weight that has a quantizer; its values and groups say how."""

    name: ClassVar[str] = "pack-dense"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Takes quantizers in and sets packed weights; masks and branches must be folded."""
        rounded = ["quantizers", "quantized"]
        folded = ["mask.weights", "lora", "row-scales"]
        return effect(needs=rounded, sets=["packed"], drops=rounded, bars=folded)

    def rewrite(self, program: Program, context: Context) -> int:
        """Pack every rounded weight; returns how many."""
        found = blocked(program)
        before = {path: program.tensor(path).nbytes for path in found}
        for view in products(program):
            if view.weight in found:
                block_a_linear(program, view, found[view.weight].value, found[view.weight].form)
        for table in tables(program):
            if table.weight in found:
                block_a_table(program, table, found[table.weight].value, found[table.weight].form)
        sweep(program)
        plan = program.plan.setdefault("packed", {})
        for path, item in found.items():
            plan[path] = {**_form(item), "bytes": [before[path], item.nbytes]}
        after = sum(item.nbytes for item in found.values())
        context.notes.append(f"{len(found)} weights packed; {shrunk(sum(before.values()), after)}")
        return len(found)


def _form(item: Blocked) -> dict[str, object]:
    return {"pattern": "dense", "values": item.form.values, "group": item.form.group}
