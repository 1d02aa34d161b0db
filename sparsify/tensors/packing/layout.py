"""layout: what the bytes of a packed N:M weight mean, and how many there are; see docs/packed.md."""

import math
from dataclasses import dataclass

from sparsify.errors import OptionError
from sparsify.tensors.packing import packed_float, packed_rounded
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import largest_code

ROWS = 8  # of a block
BITS = {"float32": 32, "int8": 8, "int4": 4}
CODES = {values: largest_code(BITS[values]) for values in ("int8", "int4")}
GROUPS = (32, 64, 96, 128)
MOST = 1 << 24  # rows or columns: far above any layer, and no product of sizes overflows 64 bits


def packable(pattern: Pattern) -> bool:
    """Say whether packed weights come in a pattern: 1:4, 2:4 and N:8 do.

    Args:
        pattern: N kept of every M.
    """
    return (pattern.n in (1, 2) and pattern.m == 4) or pattern.m == 8


@dataclass(frozen=True)
class Layout:
    """What the bytes of a packed weight `W [out, in]` mean; sizes follow from it alone.

    Args:
        n: entries stored of each group of `m` columns: 1:4, 2:4 and N:8.
        m: columns of a group.
        in_features: columns of W, 1 to 2^24.
        out_features: rows of W, 1 to 2^24.
        values: "float32", or rounded "int8" (codes -127 .. 127) or "int4" (-7 .. 7).
        group: dense columns that share a scale, 32, 64, 96 or 128; 0 for float32.

    Raises:
        OptionError: when the layout holds no such weight.
    """

    n: int
    m: int
    in_features: int
    out_features: int
    values: str = "float32"
    group: int = 0

    def __post_init__(self) -> None:
        if not packable(self.pattern):
            raise OptionError(
                f"pattern {self.pattern} cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can"
            )
        if not (1 <= self.in_features <= MOST and 1 <= self.out_features <= MOST):
            raise OptionError(
                f"a weight [{self.out_features}, {self.in_features}] cannot be packed: it needs "
                f"1 to {MOST} rows and columns"
            )
        if self.values not in BITS:
            raise OptionError(f"values {self.values!r} are not float32, int8 or int4")
        if self.values == "float32" and self.group != 0:
            raise OptionError(
                f"float32 values have no scales, but group {self.group} came; leave it at 0"
            )
        if self.values != "float32" and self.group not in GROUPS:
            raise OptionError(
                f"group {self.group} does not fit {self.values} values: 32, 64, 96 or 128 columns "
                "share a scale"
            )

    def __str__(self) -> str:
        group = f" in groups of {self.group}" if self.group else ""
        size = f"[{self.out_features}, {self.in_features}]"
        return f"{self.pattern} {self.values} {size}{group}"

    @property
    def pattern(self) -> Pattern:
        """Return N:M."""
        return Pattern(self.n, self.m)

    @property
    def bits(self) -> int:
        """Return the bits of a stored value."""
        return BITS[self.values]

    @property
    def span(self) -> int:
        """Return what the columns are padded to a multiple of."""
        if self.group:
            return self.group
        fields = packed_float.fields(self.m)
        return self.m * fields // math.gcd(self.n, fields)

    @property
    def padded(self) -> int:
        """Return the columns of a row with its padding."""
        return -(-self.in_features // self.span) * self.span

    @property
    def blocks(self) -> int:
        """Return the number of blocks of 8 rows."""
        return -(-self.out_features // ROWS)

    @property
    def entries(self) -> int:
        """Return the entries stored of one row, its padding included."""
        return self.padded // self.m * self.n

    @property
    def slots(self) -> int:
        """Return the slots (four entries of 8 rows) of a scale group; 0 for float32."""
        return self.group * self.n // (4 * self.m)

    @property
    def groups(self) -> int:
        """Return the scale groups of one row; 0 for float32."""
        return self.padded // self.group if self.group else 0

    @property
    def block_bytes(self) -> int:
        """Return the bytes of one block of rows."""
        if self.group:
            return self.groups * packed_rounded.group_bytes(self.m, self.slots, self.values)
        return self.entries // packed_float.fields(self.m) * packed_float.chunk_bytes(self.m)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the whole."""
        return self.blocks * self.block_bytes

    @property
    def bytes_per_weight(self) -> float:
        """Return the bytes for each dense weight, padding included; dense float32 has 4."""
        return self.nbytes / (self.out_features * self.in_features)
