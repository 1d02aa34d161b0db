"""The name of tokens by what they are made of: sources, tokenizer, kind of data."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsify.data.dialogues import dialogue_files
from sparsify.data.files import read_bytes
from sparsify.data.sources import documents, files_of

_FORM = 1  # of the files that hold tokens
_DIGITS = 32


def address(specs: Sequence[str], tokenizer: Any, length: int, kind: str) -> str:
    """A hash that is another where the tokens would be others.

    Of the bytes of files, the documents of datasets, what the tokenizer says of itself, and the kind; of
    sentences and dialogues also the length that they are cut to.
    """
    seen = hashlib.sha256(f"{_FORM} {kind} {0 if kind == 'text' else length}".encode())
    seen.update(_spelt(tokenizer).encode())
    for spec in specs:
        seen.update(f"\n{spec.rpartition('#')[2] if '#' in spec else ''}\n".encode())
        files = read_from(spec, kind)
        for file in files:
            seen.update(file.suffix.encode())
            for chunk in read_bytes(file):
                seen.update(chunk)
        if not files:
            for document in documents(spec):
                for piece in document:
                    seen.update(piece.encode())
                seen.update(b"\0")
    return seen.hexdigest()[:_DIGITS]


def read_from(spec: str, kind: str) -> list[Path]:
    """The files that a source is read from; none for a dataset."""
    return dialogue_files(spec) if kind == "chat" else files_of(spec)


def _spelt(tokenizer: Any) -> str:
    """What decides the tokens of a text: the rules of a fast tokenizer, the words of another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    own = [type(tokenizer).__name__, getattr(tokenizer, "chat_template", None)]
    return json.dumps([rules, own, repr(tokenizer.special_tokens_map)], default=str)
