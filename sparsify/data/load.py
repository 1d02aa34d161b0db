"""Data by name: files, folders and datasets as sequences, alone or as domains."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.data.address import address, read_from
from sparsify.data.dialogues import read_dialogues
from sparsify.data.domains import HOLDOUT, DomainData
from sparsify.data.rows import Row, gathered, read_rows
from sparsify.data.sequences import (
    ChatData,
    Data,
    SentenceData,
    TextData,
    check_tokenizer,
)
from sparsify.data.sources import joined
from sparsify.data.spec import Source, parse_sources
from sparsify.data.tokens import lines_of, of_dialogues, of_sentences, of_text
from sparsify.data.watch import Watch, unwatched
from sparsify.errors import DataError

KINDS = ("text", "sentences", "chat")


def load_data(
    spec: str | Path | Mapping[str, str | Path],
    tokenizer: Any,
    length: int,
    kind: str = "text",
    *,
    weights: Mapping[str, float] | None = None,
    holdout: float = HOLDOUT,
    watch: Watch = unwatched,
    store: Path | None = None,
) -> Data:
    """Sequences of `length` tokens from a file, a folder or a dataset (see `documents`), or several.

    `kind="text"` joins the documents by a blank line and cuts the tokens into blocks, as is usual
    for perplexity; `kind="sentences"` takes every line that is not blank as one, for encoders;
    `kind="chat"` takes dialogues from .jsonl and labels their answers only, for fine-tuning.

    Several sources are `"a.txt,b.txt"`, read as one; a `Path` is one source, whatever its name. Domains are
    `{"web": "a.txt", "code": "b.txt"}` with `weights`, or in one line `"web=a.txt:0.7,code=b.txt:0.3"`; they
    become `DomainData`, which also says what weights default to and what `holdout` is the share of. `watch`
    is told how much of a source is tokenised, in bytes of its files.

    Sources are read piece by piece. In `store`, a folder, tokens lie in files that are read in place, under a
    hash of the sources, the tokenizer and the kind: data may be larger than memory, and is tokenised once.
    Without it they are in memory, four bytes each.
    Raises DataError when the data is missing, empty or too short, or there is no tokenizer.
    """
    if kind not in KINDS:
        raise DataError(f"there is no kind of data '{kind}'; there are: {', '.join(KINDS)}")
    check_tokenizer(tokenizer)
    if isinstance(spec, str):
        sources = parse_sources(spec)
    elif isinstance(spec, Path):
        sources = [Source(str(spec))]
    else:
        sources = [Source(str(text), name) for name, text in spec.items()]
    if any(source.weight is not None for source in sources):
        if weights is not None:
            raise DataError(f"the data '{spec}' has weights already; give them once")
        weights = {str(source.domain): float(source.weight or 0) for source in sources}
    if sources and sources[0].domain is None:
        if weights is not None:
            raise DataError(f"the data '{spec}' has no domains to weigh; name them: web=a.txt")
        return _load([source.text for source in sources], tokenizer, length, kind, watch, store)
    found = {str(s.domain): _load_domain(s, tokenizer, length, kind, watch, store) for s in sources}
    return DomainData(found, weights, holdout)


def _load_domain(
    source: Source, tokenizer: Any, length: int, kind: str, watch: Watch, store: Path | None
) -> Data:
    try:
        return _load([source.text], tokenizer, length, kind, watch, store)
    except DataError as error:
        raise DataError(f"domain '{source.domain}': {error}") from error


def _load(
    specs: Sequence[str],
    tokenizer: Any,
    length: int,
    kind: str,
    watch: Watch,
    store: Path | None,
) -> Data:
    """One data set from all the sources in order."""
    folder = None if store is None else store / address(specs, tokenizer, length, kind)
    if folder is not None and folder.is_dir():
        rows = read_rows(folder)
    else:
        rows = gathered(_tokens(specs, tokenizer, length, kind, watch), folder)
    if kind == "chat":
        return ChatData(rows, tokenizer, length)
    if kind == "sentences":
        return SentenceData(rows, tokenizer, length)
    return TextData(rows.ids, length, f"the data '{','.join(specs)}'")


def _tokens(
    specs: Sequence[str], tokenizer: Any, length: int, kind: str, watch: Watch
) -> Iterator[Row]:
    total = sum(file.stat().st_size for spec in specs for file in read_from(spec, kind))
    if kind == "chat":
        dialogues = itertools.chain.from_iterable(map(read_dialogues, specs))
        return of_dialogues(dialogues, tokenizer, length, watch, total)
    if kind == "sentences":
        return of_sentences(lines_of(joined(specs)), tokenizer, length, watch, total)
    return of_text(joined(specs), tokenizer, watch, total)
