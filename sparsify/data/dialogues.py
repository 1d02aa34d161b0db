"""Dialogues as tokens: what was asked is read, only what is answered is learnt."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.data.files import suffix_of
from sparsify.data.tables import json_rows
from sparsify.errors import DataError, reason_of

# A label that no loss counts.
IGNORED = -100


def read_dialogues(spec: str) -> Iterator["Turns"]:
    """The rows of a .jsonl file (also as .gz), or of every one in a folder, in the order of their paths.

    They are read as they are asked for.

    A row has `prompt` and `response`, or `messages`, a list of `{"role": ..., "content": ...}`.
    Raises DataError for anything else, with file and line.
    """
    rows = itertools.chain.from_iterable(map(_rows, dialogue_files(spec)))
    first = next(rows, None)
    if first is None:
        raise DataError(f"the dialogues '{spec}' hold no row")
    yield first
    yield from rows


def dialogue_files(spec: str) -> list[Path]:
    """The .jsonl files of a source of dialogues; DataError where there are none."""
    path = Path(spec).expanduser()
    within = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in within if file.is_file() and suffix_of(file) == ".jsonl"]
    if not files:
        raise DataError(f"the dialogues '{spec}' must be a .jsonl file, or a folder that has some")
    return files


def encode(row: Mapping[str, Any], tokenizer: Any, length: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of a dialogue, both cut to `length`; labels of what was asked are -100.

    By the tokenizer's chat template where it has one; else turns follow each other, and each answer
    ends with the token for the end of text. Raises DataError for a dialogue that the template refuses.
    """
    ids: list[int] = []
    labels: list[int] = []
    where = getattr(row, "where", "a dialogue")
    for text, answered in _pieces(_messages(row), tokenizer, where):
        piece = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if answered and not _template(tokenizer) and tokenizer.eos_token_id is not None:
            piece.append(tokenizer.eos_token_id)
        ids += piece
        labels += piece if answered else [IGNORED] * len(piece)
    return ids[:length], labels[:length]


class Turns(dict[str, Any]):
    """A dialogue that knows in which file and line it stands."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def _rows(path: Path) -> Iterator[Turns]:
    for where, row in json_rows(path):
        if not isinstance(row, dict) or not _understood(row):
            raise DataError(
                f"{where} has neither strings 'prompt' and 'response' nor 'messages' with roles, "
                "contents and an answer of the assistant"
            )
        yield Turns(row, where)


def _understood(row: Mapping[str, Any]) -> bool:
    messages = row.get("messages")
    if messages is None:
        return all(isinstance(row.get(key), str) for key in ("prompt", "response"))
    return (
        isinstance(messages, list)
        and all(isinstance(m, dict) for m in messages)
        and all(isinstance(m.get(key), str) for m in messages for key in ("role", "content"))
        and any(m["role"] == "assistant" for m in messages)
    )


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return list(row["messages"])
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]


def _template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def _pieces(
    messages: Sequence[dict[str, str]], tokenizer: Any, where: str
) -> Iterator[tuple[str, bool]]:
    """The text of a dialogue in pieces, and whether each is an answer; tokens never cross pieces."""
    if not _template(tokenizer):
        for message in messages:
            yield message["content"], message["role"] == "assistant"
        return
    shown = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _rendered(messages[:number], tokenizer, where, add_generation_prompt=True)
        whole = _rendered(messages[: number + 1], tokenizer, where)
        if not (asked.startswith(shown) and whole.startswith(asked)):
            raise DataError(
                f"{where}: the chat template rewrites earlier turns, so that answers cannot be told from "
                "prompts; give prompt and response, one answer a row"
            )
        yield asked[len(shown) :], False
        yield whole[len(asked) :], True
        shown = whole


def _rendered(
    messages: Sequence[dict[str, str]], tokenizer: Any, where: str, **options: bool
) -> str:
    """The text of some turns by the tokenizer's template; DataError when the template refuses them."""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # a template is a program of its own: it raises what it likes
        roles = ", ".join(message["role"] for message in messages) or "no turn before the answer"
        raise DataError(
            f"{where}: the chat template refuses the dialogue ({roles}): {reason_of(error)}; "
            "change its roles or leave it out"
        ) from error
    return text
