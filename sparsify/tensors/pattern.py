"""pattern: what N:M means here, N kept of every M consecutive inputs of one output row."""

import re
from dataclasses import dataclass

from sparsify.errors import OptionError

_TEXT = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


@dataclass(frozen=True)
class Pattern:
    """N kept of every M: 2:4 keeps two of four (sparsity 0.5), 1:4 keeps one (sparsity 0.75).

    The literature is of two minds: SparseGPT and Wanda code pass the number pruned, hardware
    vendors the number kept. Here N is always the number kept.

    Args:
        n: entries kept of each group, at least 1.
        m: entries of each group, more than n.

    Raises:
        OptionError: when the group would keep nothing or everything.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise OptionError(f"pattern {self} keeps nothing: N must be at least 1, as in 2:4")
        if self.n >= self.m:
            raise OptionError(f"pattern {self} prunes nothing: N must be below M, as in 2:4")

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read `"N:M"`; the inverse of `str`.

        Args:
            text: two whole numbers and a colon, nothing else.

        Raises:
            OptionError: when the text has another form, or the numbers make no pattern.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise OptionError(f"pattern {text!r} is not N:M (N kept of every M), as in 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """Return the fraction of zeros, `1 - N/M`."""
        return (self.m - self.n) / self.m

    def check_axis(self, size: int, name: str) -> None:
        """Refuse an axis that cannot be cut into groups of M.

        Args:
            size: entries along the axis.
            name: whose axis it is, for the sentence.

        Raises:
            OptionError: when M does not divide the size.
        """
        if size % self.m:
            raise OptionError(
                f"pattern {self} does not fit {name}: its axis of {size} is no multiple of {self.m}"
            )
