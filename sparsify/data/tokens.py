"""Text of any size as tokens, a piece at a time."""

import ctypes
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsify.data.dialogues import IGNORED, encode
from sparsify.data.rows import Row
from sparsify.data.watch import Watch, unwatched, watched

# A piece of text is tokenised at once; pieces end at a line end where there is one.
_PIECE_CHARACTERS = 1 << 20
_TOGETHER = 256  # sentences, or dialogues


def of_text(
    text: Iterable[str], tokenizer: Any, watch: Watch = unwatched, total: int = 0
) -> Iterator[Row]:
    """Token ids of running text that comes in pieces, without special tokens."""
    for (piece,) in watched(_pieces(text), watch, total=total, size=len):
        # verbose=False: the text is cut into sequences later, its length here means nothing.
        yield tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"], None
        _give_back()


def of_sentences(
    sentences: Iterable[str],
    tokenizer: Any,
    length: int,
    watch: Watch = unwatched,
    total: int = 0,
) -> Iterator[Row]:
    """Token ids of each sentence with the tokenizer's special tokens, cut to `length`."""
    for some in watched(sentences, watch, _TOGETHER, total=total, size=len):
        for ids in tokenizer(some, truncation=True, max_length=length)["input_ids"]:
            yield ids, None


def of_dialogues(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    length: int,
    watch: Watch = unwatched,
    total: int = 0,
) -> Iterator[Row]:
    """Token ids and labels of each dialogue, cut to `length`; without those whose answers lie beyond it."""
    for some in watched(rows, watch, _TOGETHER, total=total, size=_characters):
        for row in some:
            ids, labels = encode(row, tokenizer, length)
            # The first token is never predicted.
            if any(label != IGNORED for label in labels[1:]):
                yield ids, labels


def lines_of(text: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in pieces, blank ones and the blanks around others left out."""
    held = ""
    for part in itertools.chain(text, "\n"):
        *whole, held = (held + part).split("\n")
        yield from (line for each in whole for one in each.splitlines() if (line := one.strip()))


def _pieces(text: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of one size, or a little less where a line ends."""
    held = ""
    for part in text:
        held += part
        while len(held) > _PIECE_CHARACTERS:
            stop = held.rfind("\n", 0, _PIECE_CHARACTERS) + 1 or _PIECE_CHARACTERS
            yield held[:stop]
            held = held[stop:]
    if held:
        yield held


def _give_back() -> None:
    """Hand memory that is free back to the system.

    The C library of Linux keeps what a piece took, between the words that the tokenizer remembers, and asks
    for more for the next: without this a text takes 75 bytes a token in all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _characters(row: Mapping[str, Any]) -> int:
    """How long a dialogue is."""
    said = row.get("messages") or [{"content": row["prompt"]}, {"content": row["response"]}]
    return sum(len(message["content"]) for message in said)
