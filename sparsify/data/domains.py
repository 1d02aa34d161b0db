"""Data of several named domains: what is held out of each, and the order in which sequences are drawn."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.data.dialogues import IGNORED
from sparsify.data.sequences import Data, Part, order, split
from sparsify.data.spec import check_names
from sparsify.errors import DataError

# The share of a domain that is held out unless another is given.
HOLDOUT = 0.05
# How far given weights may be from a sum of 1: published ones are rounded.
_ROUNDED = 0.01
# Domains of one size must not be drawn in one order, nor in that of seeds a step apart.
_STRIDE = 7919


@dataclass(frozen=True)
class Domain:
    """A domain: `data` to draw from, `held` out for validation (None: nothing is), and its first weight."""

    name: str
    data: Data
    held: Data | None
    weight: float

    @property
    def parts(self) -> tuple[Data, ...]:
        """Everything that belongs to the domain."""
        return (self.data,) if self.held is None else (self.data, self.held)


class DomainData:
    """Data of several domains, numbered one domain after the other, without what is held out of each.

    `weights` are the shares of the sequences drawn, by name; without them each domain has that of its
    number of sequences. `holdout` is the share of each domain's sequences, its last ones, that nothing but
    validation sees; at least one, and with 0 none. Raises DataError for weights that make no sense, domains
    too small, and domains whose batches have other tensors.
    """

    def __init__(
        self,
        data: Mapping[str, Data],
        weights: Mapping[str, float] | None = None,
        holdout: float = HOLDOUT,
    ) -> None:
        check_names(list(data))
        if not data:
            raise DataError("the data has no domain")
        if not 0 <= holdout < 1:
            raise DataError(f"a held-out share of {holdout:g} must be at least 0 and less than 1")
        halves = {name: _halves(name, whole, holdout) for name, whole in data.items()}
        if weights is None:
            shares = _sizes([len(half) for half, _ in halves.values()])
        else:
            shares = _checked(weights, list(data))
        self.domains = tuple(
            Domain(name, *halves[name], share) for name, share in zip(data, shares, strict=True)
        )
        self._starts = [0]
        for domain in self.domains:
            self._starts.append(self._starts[-1] + len(domain.data))
        _check_alike(self.domains)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def length(self) -> int:
        """Tokens in the longest sequence a batch may hold."""
        return max(domain.data.length for domain in self.domains)

    def __len__(self) -> int:
        """The number of sequences, those held out left out."""
        return self._starts[-1]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The sequences at the indices, in that order, `[b, ...]`; padded where domains differ in length."""
        if not indices:
            return self.domains[0].data.batch(indices)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(self.domain_of(index), []).append(place)
        found = [
            self.domains[number].data.batch([indices[p] - self._starts[number] for p in which])
            for number, which in places.items()
        ]
        back = torch.tensor([place for which in places.values() for place in which]).argsort()
        return {name: _joined(name, [batch[name] for batch in found])[back] for name in found[0]}

    def domain_of(self, index: int) -> int:
        """The number of the domain that a sequence belongs to; IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of data that has {len(self)}")
        return bisect.bisect_right(self._starts, index) - 1

    def start(self, number: int) -> int:
        """The index of the first sequence of a domain."""
        return self._starts[number]

    def sample(self, count: int, seed: int) -> list[int]:
        """Indices of `count` sequences in the proportions of the weights; of no more than there are.

        The sequences of a domain are distinct until it is used up; then it starts again.
        """
        return Draws(self, seed).take(min(max(count, 0), len(self)))

    def first(self, limit: int) -> "DomainData":
        """The same domains with the first `limit` sequences of each, nothing held out."""
        parts = {d.name: Part(d.data, 0, min(limit, len(d.data))) for d in self.domains}
        return DomainData(parts, {d.name: d.weight for d in self.domains}, holdout=0)

    def described(self) -> dict[str, dict[str, Any]]:
        """Weight, sequences and held-out sequences of each domain, as JSON values."""
        return {
            domain.name: {
                "weight": domain.weight,
                "sequences": len(domain.data),
                "held_out": 0 if domain.held is None else len(domain.held),
            }
            for domain in self.domains
        }


class Draws:
    """The sequences that are drawn one after the other from domains, by weights that may change.

    Each draw gives every domain credit of its weight and takes 1 from the one with most, the first of
    equals: after n draws at the same weights no domain has more than 1 beyond its share of n. Inside a
    domain each epoch is a permutation by seed. `state` and `load` keep it all.
    """

    def __init__(self, data: DomainData, seed: int) -> None:
        self.data, self.seed = data, seed
        self.weights = [domain.weight for domain in data.domains]
        self._credit = [0.0] * len(self.weights)
        self.taken = [0] * len(self.weights)
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def take(self, count: int) -> list[int]:
        """Indices of the next `count` sequences."""
        return [self._next() for _ in range(count)]

    def state(self) -> dict[str, Tensor]:
        """Weights, credit, and how many sequences were taken, `[domains]` each."""
        return {
            "weights": torch.tensor(self.weights, dtype=torch.float64),
            "credit": torch.tensor(self._credit, dtype=torch.float64),
            "taken": torch.tensor(self.taken),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take `state` over."""
        self.weights, self._credit = state["weights"].tolist(), state["credit"].tolist()
        self.taken = state["taken"].tolist()

    def _next(self) -> int:
        self._credit = [c + w for c, w in zip(self._credit, self.weights, strict=True)]
        number = self._credit.index(max(self._credit))
        self._credit[number] -= 1
        size = len(self.data.domains[number].data)
        epoch, within = divmod(self.taken[number], size)
        self.taken[number] += 1
        known, permutation = self._orders.get(number, (-1, []))
        if known != epoch:
            permutation = order(size, self.seed + _STRIDE * number, epoch).tolist()
            self._orders[number] = (epoch, permutation)
        return self.data.start(number) + permutation[within]


def _sizes(counts: Sequence[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def _checked(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Weights in the order of the names, of sum 1."""
    strange = sorted(set(weights) - set(names))
    if strange:
        raise DataError(
            f"there is a weight for '{strange[0]}', which is no domain; there are: {', '.join(names)}"
        )
    for name in names:
        if name not in weights:
            raise DataError(f"the domain '{name}' has no weight; give all weights, or none")
        if not 0 < weights[name] < math.inf:
            raise DataError(
                f"the weight {weights[name]:g} of the domain '{name}' must be more than 0; leave out "
                "a domain that is not to be drawn"
            )
    whole = math.fsum(weights.values())
    if abs(whole - 1) > _ROUNDED:
        raise DataError(f"the weights of the domains sum to {whole:g}, and should to 1")
    return [weights[name] / whole for name in names]


def _halves(name: str, data: Data, holdout: float) -> tuple[Data, Data | None]:
    if not holdout:
        return data, None
    if len(data) < 2:
        raise DataError(
            f"the domain '{name}' has {len(data)} sequence, too few to train on and hold out some; bring "
            "more text, use a shorter length, or hold out nothing"
        )
    return split(data, 1 - holdout)


def _check_alike(domains: Sequence[Domain]) -> None:
    """Batches of all domains must have the same tensors, and a mask where their lengths differ."""
    first, *others = domains
    names = sorted(first.data.batch([0]))
    for other in others:
        found = sorted(other.data.batch([0]))
        if found != names:
            raise DataError(
                f"the domain '{other.name}' has {', '.join(found)}, and '{first.name}' has "
                f"{', '.join(names)}; give all the same"
            )
        if other.data.length != first.data.length and "attention_mask" not in names:
            raise DataError(
                f"the domains '{first.name}' and '{other.name}' differ in length ({first.data.length} and "
                f"{other.data.length} tokens) and have no attention_mask; add it, or cut them alike"
            )


def _joined(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Rows of several domains under each other, those of tokens padded on the right to the longest."""
    longest = max(tensor.shape[1] if tensor.dim() > 1 else 0 for tensor in tensors)
    value = IGNORED if name == "labels" else 0
    padded = [
        torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=value)
        if tensor.dim() == 2 and tensor.shape[1] < longest
        else tensor
        for tensor in tensors
    ]
    return torch.cat(padded)
