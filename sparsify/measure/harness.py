"""What EleutherAI's harness asks of a model, answered from logits; imports `lm_eval`, so import it late."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from sparsify.errors import DataError, SparsifyError
from sparsify.measure.silence import Aloud
from sparsify.measure.tasks import Subject, Watch

# Where neither model nor tokenizer states one, as the harness has it.
_POSITIONS = 2048
# Tokenizers that state no length state a number like 1e30.
_UNSTATED = 1 << 30
_NEW_TOKENS = 256
# Logits in a batch: 512 MB as float32.
_LOGITS = 1 << 27

# Context and continuation as token ids, behind what the harness calls the request.
Request = tuple[Any, list[int], list[int]]


class Adapter(TemplateLM):  # type: ignore[misc]
    """A model as the harness sees one.

    Sequences are batched by length, longest first, padded on the right and masked; one that several
    continuations end (they differ in the last token) is run once. Too long ones lose tokens on the left.
    """

    def __init__(self, subject: Subject, batch: int, watch: Watch | None, aloud: Aloud) -> None:
        super().__init__()
        self.tokenizer = subject.tokenizer
        self._subject, self._batch, self._aloud = subject, batch, aloud
        self._watch = watch or (lambda done, total: None)
        prefix = self._prefix()
        self._first = None if prefix is None else self.tokenizer.decode([prefix])
        self._wide = subject.admission.vocabulary or 1

    @property
    def max_length(self) -> int:
        """Tokens that the model takes."""
        stated = getattr(self.tokenizer, "model_max_length", None)
        usable = stated if isinstance(stated, int) and 0 < stated < _UNSTATED else _POSITIONS
        return self._subject.admission.positions or usable

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text; None when there is none."""
        found: int | None = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context; DataError when the tokenizer has none."""
        found = self._prefix()
        if found is None:
            raise DataError(
                f"the tokenizer of '{self._subject.name}' has no token that begins or ends a text, "
                "and the tasks ask for a text without context"
            )
        return found

    def _prefix(self) -> int | None:
        found: int | None = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if found is None else found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **others: Any
    ) -> list[int]:
        """Token ids, with the tokenizer's special ones unless told or there already."""
        if add_special_tokens is None and self._first and string.startswith(self._first):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        # verbose=False: what is too long is cut later.
        found: list[int] = self.tokenizer.encode(string, verbose=False, **special)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], **others: Any
    ) -> list[tuple[float, bool]]:
        """For each request `log p(continuation | context)` in nats, and whether greedy decoding gives it."""
        answers = [(0.0, True)] * len(requests)
        ends: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise DataError(
                    f"a continuation of {len(continuation)} tokens is longer than the "
                    f"{self.max_length} that '{self._subject.name}' takes"
                )
            # The last token is only predicted.
            ids = tuple((context + continuation)[-(self.max_length + 1) : -1])
            if continuation:
                ends.setdefault(ids, []).append((number, continuation))
        for rows, logits in self._batches(sorted(ends, key=lambda row: (-len(row), row))):
            for place, row in enumerate(rows):
                for number, tokens in ends[row]:
                    said = logits[place, len(row) - len(tokens) : len(row)]
                    answers[number] = _scored(said, tokens)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], **others: Any) -> list[float]:
        """The log-likelihood of whole texts in nats, in windows of all tokens that the model takes."""
        windows: list[Request] = []
        for number, item in enumerate(requests):
            pairs = get_rolling_token_windows(
                self.tok_encode(item.args[0]), self.prefix_token_id, self.max_length, 1
            )
            windows += [(number, *make_disjoint_window(pair)) for pair in pairs]
        totals = [0.0] * len(requests)
        answers = self._loglikelihood_tokens(windows)
        for (number, _, _), (likelihood, _) in zip(windows, answers, strict=True):
            totals[number] += likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], **others: Any) -> list[str]:
        """The likeliest continuation of each context up to a stop string, the end token or a length.

        Raises DataError for a task that draws at random or asks for more tokens than the model takes.
        """
        alike: dict[tuple[int, tuple[str, ...]], list[tuple[list[int], int]]] = {}
        for number, item in enumerate(requests):
            context, wanted = item.args
            settings = normalize_gen_kwargs(wanted, _NEW_TOKENS)
            count, room = settings["max_gen_toks"], self.max_length - settings["max_gen_toks"]
            if settings["do_sample"] or room < 1:
                why = "draws tokens at random" if settings["do_sample"] else f"asks for {count}"
                raise DataError(
                    f"a task {why}; '{self._subject.name}' is asked for its likeliest tokens, "
                    f"at most {self.max_length} with those before"
                )
            ids = self.tok_encode(context)[-room:]
            alike.setdefault((count, tuple(settings["until"])), []).append((ids, number))
        texts, done = [""] * len(requests), 0
        for (count, stops), jobs in alike.items():
            jobs.sort(key=lambda job: -len(job[0]))
            for start in range(0, len(jobs), self._batch):
                some = jobs[start : start + self._batch]
                self._tell(done, len(requests))
                found = self._continued([ids for ids, _ in some], count, stops)
                for (_, number), text in zip(some, found, strict=True):
                    texts[number] = text
                done += len(some)
        return texts

    def _continued(
        self, contexts: Sequence[list[int]], count: int, stops: Sequence[str]
    ) -> list[str]:
        """The texts behind some contexts; nothing is cached, so every step runs them whole."""
        new: list[list[int]] = [[] for _ in contexts]
        texts, going = [""] * len(contexts), list(range(len(contexts)))
        while going:
            rows = [contexts[place] + new[place] for place in going]
            logits = self._logits(rows)
            for row, place in enumerate(tuple(going)):
                token = int(logits[row, len(rows[row]) - 1].argmax())
                new[place].append(token)
                text = self.tokenizer.decode(new[place], skip_special_tokens=True)
                cut = min((text.find(stop) for stop in stops if stop in text), default=-1)
                texts[place] = text if cut < 0 else text[:cut]
                if token == self.eot_token_id or cut >= 0 or len(new[place]) >= count:
                    going.remove(place)
        return texts

    def _batches(
        self, rows: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[Sequence[tuple[int, ...]], Tensor]]:
        """Rows in order of their length with their logits, as many at a time as memory should hold."""
        start = 0
        while start < len(rows):
            fits = max(1, _LOGITS // (len(rows[start]) * self._wide))
            some = rows[start : start + min(self._batch, fits)]
            self._tell(start, len(rows))
            yield some, self._logits(some)
            start += len(some)
        self._tell(len(rows), len(rows))

    def _tell(self, done: int, total: int) -> None:
        with self._aloud():
            self._watch(done, total)

    @torch.no_grad()
    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits `[b, T, V]` of rows of ids padded on the right to the longest."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        largest = int(ids.max())
        self._subject.admission.check_ids(largest, "the items of the tasks")
        with self._aloud():
            logits = self._subject.run({"input_ids": ids, "attention_mask": mask})[0]
        # An encoder's states are far narrower than its vocabulary, if wider than some ids.
        if logits.dim() != 3 or logits.shape[-1] <= max(largest, self._wide // 2):
            raise DataError(
                f"'{self._subject.name}' gives {list(logits.shape)}, not logits over its "
                "vocabulary; tasks are for language models"
            )
        return logits


def _scored(logits: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """From logits `[n, V]` the log-likelihood of n tokens in nats, and whether each is the likeliest."""
    wanted = torch.tensor(tokens, device=logits.device)
    logs = torch.log_softmax(logits.float(), dim=-1)
    total = float(logs.gather(1, wanted[:, None]).double().sum())
    if not math.isfinite(total):
        raise SparsifyError(
            f"a log-likelihood became {total}; the weights hold NaN or have grown too large"
        )
    return total, bool((logs.argmax(-1) == wanted).all())
