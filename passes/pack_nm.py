"""pack-nm: store N:M weights packed, without their zeros.

    linear(x, W, b)                    ->  nm_linear(x, bytes, b)        float32
    linear(R(x), Q(W, scales), b)      ->  nm_linear(x, bytes, b)        int8, int4: codes and scales

`W [out, in]` with at most N nonzeros in every M columns of a row; `bytes` uint8, laid out as in
docs/packed.md. They are unpacked again and compared bit for bit with the weight before that is dropped.

Outputs stay within 1e-5. For int8 and int4 that holds where inputs are not rounded; with their rounding the
last digit of a float moves a code of the next layer by a whole step, and outputs may be as far apart as
rounding itself moves them (docs/packed.md).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.packed_nm import pack_linear
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.pack.nm import Request, layouts, packed_bytes, shrunk
from sparsify.tensors.packing.fit import Wanted
from sparsify.tensors.packing.layout import Layout


@dataclass(frozen=True)
class PackNm(Pass):
    """Pack every targeted weight that has the zeros of a pattern.

    `pattern` is N:M, or `N:8` with the letter: the smallest N that each weight allows. Weights without any
    zero stay dense, unless a target other than `*` names them. int8 and int4 need quantizers with chosen
    scales and take them in, `rounded` whichever each weight has; `group` is that of the quantizers.
    """

    name: ClassVar[str] = "pack-nm"
    moves: ClassVar[Moves] = ROUNDING
    pattern: str = "2:4"
    values: Literal["float32", "int8", "int4", "rounded"] = "float32"
    group: int | None = None
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Sets packed weights; masks and branches must be folded; int8 and int4 take quantizers in."""
        folded = ["mask.weights", "lora", "row-scales"]
        if self.values == "float32":
            return effect(sets=["packed"], bars=[*folded, "quantizers"])
        rounded = ["quantizers", "quantized"]
        return effect(needs=rounded, sets=["packed"], drops=rounded, bars=folded)

    def check(self, program: Program) -> None:
        """The pattern must be one that can be packed, the group for rounded values, and globs must match."""
        Wanted.parse(self.pattern)
        if self.values == "float32" and self.group is not None:
            raise OptionError("group is for rounded values: float32 has no scales")
        targeted(program, self.targets, self.ignore, experts=True)

    def rewrite(self, program: Program, context: Context) -> int:
        """Pack every weight that has the pattern; returns how many."""
        views = targeted(program, self.targets, self.ignore, experts=True)
        refuse_shared(program, views, "it is needed dense")
        by_path = {view.weight: view for view in views}
        chosen = layouts(program, by_path, self._request(program))
        ready = {path: packed_bytes(program, by_path[path], chosen[path]) for path in chosen}
        sizes = {path: (program.tensor(path).nbytes, ready[path].nbytes) for path in ready}
        for view in views:
            if view.weight in chosen:
                pack_linear(program, view, ready[view.weight], chosen[view.weight])
        sweep(program)
        self._record(program, context, chosen, sizes, len(by_path))
        return len(chosen)

    def _request(self, program: Program) -> Request:
        globs = tuple(glob for glob in self.targets if glob != "*")
        named = {view.weight for view in targeted(program, globs, self.ignore, experts=True)}
        return Request(Wanted.parse(self.pattern), self.values, self.group, named)

    def _record(
        self,
        program: Program,
        context: Context,
        chosen: dict[str, Layout],
        sizes: dict[str, tuple[int, int]],
        targets: int,
    ) -> None:
        """Put the layouts and the bytes before and after into the plan, and their sums into the report."""
        plan = program.plan.setdefault("packed", {})
        for path, layout in chosen.items():
            plan[path] = {
                "pattern": str(layout.pattern),
                "values": layout.values,
                "group": layout.group,
                "bytes": list(sizes[path]),
            }
        before, after = (sum(size[i] for size in sizes.values()) for i in (0, 1))
        context.notes.append(
            f"{len(chosen)} weights packed, {targets - len(chosen)} left dense; "
            f"{shrunk(before, after)}"
        )
        context.notes.extend(left_whole(program))
