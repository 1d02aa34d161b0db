"""Data by name: files, folders and datasets as sequences, alone or as domains."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.data.dialogues import read_dialogues
from sparsify.data.domains import HOLDOUT, DomainData
from sparsify.data.sequences import (
    ChatData,
    Data,
    SentenceData,
    TextData,
    check_tokenizer,
    tokenize,
)
from sparsify.data.sources import read_texts
from sparsify.data.spec import Source, parse_sources
from sparsify.data.watch import Watch, unwatched
from sparsify.errors import DataError

KINDS = ("text", "sentences", "chat")


def load_data(
    spec: str | Mapping[str, str],
    tokenizer: Any,
    length: int,
    kind: str = "text",
    *,
    weights: Mapping[str, float] | None = None,
    holdout: float = HOLDOUT,
    watch: Watch = unwatched,
) -> Data:
    """Sequences of `length` tokens from a file, a folder or a dataset (see `read_texts`), or several.

    `kind="text"` joins the documents by a blank line and cuts the tokens into blocks, as is usual
    for perplexity; `kind="sentences"` takes every line that is not blank as one, for encoders;
    `kind="chat"` takes dialogues from .jsonl and labels their answers only, for fine-tuning.

    Several sources are `"a.txt,b.txt"`, read as one. Domains are `{"web": "a.txt", "code": "b.txt"}` with
    `weights`, or in one line `"web=a.txt:0.7,code=b.txt:0.3"`; they become `DomainData`, which also
    says what weights default to and what `holdout` is the share of. `watch` is told how much of a source is
    tokenised.
    Raises DataError when the data is missing, empty or too short, or there is no tokenizer.
    """
    if kind not in KINDS:
        raise DataError(f"there is no kind of data '{kind}'; there are: {', '.join(KINDS)}")
    check_tokenizer(tokenizer)
    if isinstance(spec, str):
        sources = parse_sources(spec)
    else:
        sources = [Source(text, name) for name, text in spec.items()]
    if any(source.weight is not None for source in sources):
        if weights is not None:
            raise DataError(f"the data '{spec}' has weights already; give them once")
        weights = {str(source.domain): float(source.weight or 0) for source in sources}
    if sources and sources[0].domain is None:
        if weights is not None:
            raise DataError(f"the data '{spec}' has no domains to weigh; name them: web=a.txt")
        return _load([source.text for source in sources], tokenizer, length, kind, watch)
    found = {str(s.domain): _load_domain(s, tokenizer, length, kind, watch) for s in sources}
    return DomainData(found, weights, holdout)


def _load_domain(source: Source, tokenizer: Any, length: int, kind: str, watch: Watch) -> Data:
    try:
        return _load([source.text], tokenizer, length, kind, watch)
    except DataError as error:
        raise DataError(f"domain '{source.domain}': {error}") from error


def _load(specs: Sequence[str], tokenizer: Any, length: int, kind: str, watch: Watch) -> Data:
    """One data set from all the sources in order."""
    if kind == "chat":
        rows = [row for spec in specs for row in read_dialogues(spec)]
        return ChatData(rows, tokenizer, length, watch)
    texts = [text for spec in specs for text in read_texts(spec)]
    if kind == "sentences":
        lines = [line.strip() for text in texts for line in text.splitlines()]
        return SentenceData([line for line in lines if line], tokenizer, length, watch)
    name = f"the data '{','.join(specs)}'"
    return TextData(tokenize("\n\n".join(texts), tokenizer, watch), length, name)
