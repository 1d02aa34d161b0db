"""fit: which N:M pattern is wanted packed, and which the zeros of a weight already have."""

import re
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from sparsify.errors import OptionError
from sparsify.tensors.packing.layout import packable
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import check_matrix

_OPEN = re.compile(r"N:([0-9]{1,6})")


@dataclass(frozen=True)
class Wanted:
    """A pattern asked for: N:M, or with `n` None any N of M, the smallest that holds.

    Args:
        n: entries kept of each group, or None.
        m: entries of each group.
    """

    n: int | None
    m: int

    @classmethod
    def parse(cls, text: str) -> "Wanted":
        """Read `"2:4"`, or `"N:8"` with the letter, where N may differ from weight to weight.

        Args:
            text: a number or the letter N, a colon, a number.

        Raises:
            OptionError: when the text has another form, the numbers make no pattern, or none that
                can be packed.
        """
        found = _OPEN.fullmatch(text)
        pattern = Pattern.parse(text) if found is None else Pattern(1, int(found[1]))
        if not packable(pattern):
            raise OptionError(
                f"pattern {text} cannot be packed: 1:4, 2:4 and N:8 (N from 1 to 7) can"
            )
        return cls(pattern.n if found is None else None, pattern.m)

    def __str__(self) -> str:
        return f"{'N' if self.n is None else self.n}:{self.m}"


def fullest_group(weight: Tensor, m: int) -> tuple[int, int, int]:
    """Find the group of M consecutive columns of a row with the most nonzeros, the first of equal ones.

    Args:
        weight: W [out, in]; the last group of a row may be shorter than M.
        m: columns of a group.

    Returns:
        Its row, its first column, and its number of nonzeros: the smallest N of an N:M that holds.

    Raises:
        SparsifyError: when W is no matrix.
    """
    check_matrix(weight, "the weight")
    padded = pad(weight != 0, (0, -weight.shape[1] % m))
    kept = padded.view(len(padded), -1, m).sum(2)
    place = int(kept.argmax())
    row, group = divmod(place, kept.shape[1])
    return row, group * m, int(kept[row, group])
