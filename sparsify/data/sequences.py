"""Sequences to calibrate, train and measure on, and the deterministic orders they are taken in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsify.data.dialogues import IGNORED
from sparsify.data.rows import Rows, gathered
from sparsify.data.tokens import of_dialogues, of_sentences
from sparsify.data.watch import Watch, unwatched
from sparsify.errors import DataError


class Data(Protocol):
    """Numbered sequences; equal indices always give equal tensors."""

    @property
    def length(self) -> int:
        """Tokens in the longest sequence a batch may hold."""

    def __len__(self) -> int:
        """The number of sequences."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and, for text, `labels`, each `[b, T]`."""


@runtime_checkable
class Drawn(Protocol):
    """Data that says itself which of its sequences stand for all of it."""

    def sample(self, count: int, seed: int) -> list[int]:
        """Indices of `count` sequences, of no more than there are."""


class TextData:
    """Running text cut into consecutive blocks that do not overlap; the labels are the input ids.

    `tokens [n]` are token ids; the n mod `length` last of them are left out.
    Raises DataError when there are fewer than `length`.
    """

    def __init__(self, tokens: Tensor, length: int, name: str = "the data") -> None:
        _check_length(length, 2)
        if tokens.dim() != 1:
            raise DataError(f"{name} must be one row of tokens, and has {tokens.dim()} dimensions")
        if tokens.numel() < length:
            raise DataError(
                f"{name} has {tokens.numel()} tokens, fewer than one sequence of {length}; "
                "use a shorter length or more text"
            )
        count = tokens.numel() // length
        self._blocks = tokens[: count * length].view(count, length)

    @property
    def length(self) -> int:
        """Tokens in every sequence."""
        return self._blocks.shape[1]

    def __len__(self) -> int:
        """The number of blocks."""
        return self._blocks.shape[0]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (ones) and `labels`, each `[b, length]`."""
        blocks = self._blocks[torch.as_tensor(list(indices), dtype=torch.long)].long()
        return {
            "input_ids": blocks,
            "attention_mask": torch.ones_like(blocks),
            "labels": blocks.clone(),
        }


class _Padded:
    """Sequences of their own lengths; a batch is padded on the right to its longest one.

    So a sequence's own tokens never depend on its neighbours.
    """

    def __init__(self, rows: Sequence[Mapping[str, Tensor]], tokenizer: Any, length: int) -> None:
        self._rows = rows
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "labels": IGNORED}
        self._length = length

    @property
    def length(self) -> int:
        """Tokens in the longest sequence a batch may hold."""
        return self._length

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, and `labels` if there are any, each `[b, T]`, T the longest."""
        rows = [self._rows[index] for index in indices]
        pad = torch.nn.utils.rnn.pad_sequence
        made = {
            name: pad([row[name] for row in rows], True, self._padding[name]) for name in rows[0]
        }
        mask = pad([torch.ones_like(row["input_ids"]) for row in rows], True, 0)
        return {"input_ids": made.pop("input_ids"), "attention_mask": mask, **made}


class SentenceData(_Padded):
    """Separate sentences with the tokenizer's special tokens, cut to `length`, without labels.

    Raises DataError when there is no sentence or no tokenizer.
    """

    def __init__(
        self, sentences: Sequence[str] | Rows, tokenizer: Any, length: int, watch: Watch = unwatched
    ) -> None:
        _check_length(length, 2)
        check_tokenizer(tokenizer)
        if not isinstance(sentences, Rows):
            total = sum(map(len, sentences))
            sentences = gathered(of_sentences(sentences, tokenizer, length, watch, total))
        if not sentences:
            raise DataError("the data has no sentence")
        super().__init__(sentences, tokenizer, length)


class ChatData(_Padded):
    """Dialogues cut to `length`; labels are -100 where something was asked, and on padding.

    Dialogues whose answers lie beyond `length` are left out. Raises DataError when none is left or there
    is no tokenizer.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]] | Rows,
        tokenizer: Any,
        length: int,
        watch: Watch = unwatched,
    ) -> None:
        _check_length(length, 2)
        check_tokenizer(tokenizer)
        if not isinstance(rows, Rows):
            rows = gathered(of_dialogues(rows, tokenizer, length, watch))
        if not rows:
            raise DataError(
                f"no dialogue has an answer within {length} tokens; use a greater length"
            )
        super().__init__(rows, tokenizer, length)


class TensorData:
    """Ready tensors: each `[sequences, ...]`, all with the same first size.

    `length` is the second size of the first tensor (1 for vectors).
    Raises DataError when there is no tensor, no sequence, or sizes that differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        sizes = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in tensors.items()}
        if not sizes or 0 in sizes.values():
            raise DataError("the data has no sequence")
        if len(set(sizes.values())) > 1:
            raise DataError(f"the tensors differ in their number of sequences: {sizes}")
        self._tensors = dict(tensors)
        self._first = next(iter(self._tensors.values()))

    @property
    def length(self) -> int:
        """The second size of the first tensor."""
        return self._first.shape[1] if self._first.dim() > 1 else 1

    def __len__(self) -> int:
        """The number of sequences."""
        return self._first.shape[0]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of every tensor at the indices, `[b, ...]`."""
        rows = torch.as_tensor(list(indices), dtype=torch.long)
        return {name: tensor[rows] for name, tensor in self._tensors.items()}


@dataclass(frozen=True)
class Part:
    """The sequences `start` to `stop - 1` of other data, numbered from 0."""

    data: Data
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens per sequence of the whole."""
        return self.data.length

    def __len__(self) -> int:
        """The number of sequences in the part."""
        return self.stop - self.start

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the whole at the shifted indices."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"sequence {index} of a part that has {len(self)}")
        return self.data.batch([self.start + index for index in indices])


def order(size: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..size-1 of one epoch, int64 `[size]`, from the seed and epoch alone."""
    # Seeds a step apart must not share epochs, hence the stride by a prime.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def sample(data: Data, count: int, seed: int) -> list[int]:
    """Indices of `count` distinct sequences drawn with a seed; all of them when there are fewer.

    Of data with domains as many of each as its weight says, some of them again where it has too few.
    """
    if isinstance(data, Drawn):
        return data.sample(count, seed)
    indices: list[int] = order(len(data), seed, 0)[: max(count, 0)].tolist()
    return indices


def batches(data: Data, indices: Sequence[int], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """The sequences at `indices` in that order, `batch_size` at a time; the last may be smaller."""
    if batch_size < 1:
        raise DataError(f"a batch size of {batch_size} is not possible; use 1 or more")
    for start in range(0, len(indices), batch_size):
        yield data.batch(indices[start : start + batch_size])


def split(data: Data, fraction: float) -> tuple[Part, Part]:
    """The first `fraction` of the sequences and the rest; both have at least one sequence.

    Raises DataError when the fraction is outside (0, 1) or there is only one sequence.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"a part of {fraction:g} is not between 0 and 1")
    size = len(data)
    if size < 2:
        raise DataError(f"the data has {size} sequence, too few to be split; bring more text")
    border = min(max(round(size * fraction), 1), size - 1)
    return Part(data, 0, border), Part(data, border, size)


def check_tokenizer(tokenizer: Any) -> None:
    """Text cannot be cut into tokens without a tokenizer; DataError."""
    if tokenizer is None:
        raise DataError(
            "text needs a tokenizer, and the model has none; save one into the model folder"
        )


def _check_length(length: int, least: int) -> None:
    if length < least:
        raise DataError(f"a length of {length} is too short; use {least} or more tokens")
