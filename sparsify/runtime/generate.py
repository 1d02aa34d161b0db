"""Text from an ONNX file with a key/value cache, on ONNX Runtime."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import DataError, OptionError
from sparsify.ir.facts.admission import Admission, admission_in
from sparsify.pretrained.companions import ids_of
from sparsify.pretrained.load import load_tokenizer
from sparsify.pretrained.rope import switch_length
from sparsify.runtime.caches import PAST, Caches, empty_caches
from sparsify.runtime.sampling import Defaults, chosen
from sparsify.runtime.session import UNPADDED, onnxruntime_session

FILE = "model.onnx"
FORMAT = "onnx-decode"
_NO_PROMPT = "a prompt is text or ids [batch, length] with at least one token"
_ONE_LENGTH = (
    "the prompts are of different lengths; this model has a prompt of its own and sees a window of places, "
    "in which padding would stand: give prompts of one length, or one at a time"
)
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Generated:
    """What came out: `ids [batch, prompt + new]`, seconds for the prompt, and for each token after it."""

    ids: Tensor
    prompt_seconds: float
    token_seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """New tokens of one sequence a second, the first left out; 0 when there was one alone."""
        total = sum(self.token_seconds)
        return len(self.token_seconds) / total if total else 0.0


class Generator:
    """An opened model that generates; `tokenizer` is None where the folder has none.

    `notes` are sentences about what the folder asks of generation and is not done.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        trust_remote_code: bool = False,
        verify: bool = True,
    ) -> None:
        self.path = path
        self.session = onnxruntime_session(path, threads=threads, verify=verify)
        self.tokenizer: Any = load_tokenizer(str(path.parent), trust_remote_code=trust_remote_code)
        names = [entry.name for entry in self.session.get_inputs()]
        self._fed = {name for name in names if not name.startswith(PAST)}
        if len(self._fed) == len(names) or "input_ids" not in self._fed:
            raise DataError(f"'{path}' takes no cache; export to {FORMAT}")
        self._defaults = Defaults(path.parent, self.tokenizer)
        self.notes: Sequence[str] = self._defaults.notes
        self._switch = switch_length(self._defaults.config)
        self._unpadded = UNPADDED in self.session.get_modelmeta().custom_metadata_map

    @functools.cached_property
    def admission(self) -> Admission:
        """What sequences the model takes."""
        return admission_in(self.path.parent)

    def generate(
        self,
        prompt: str | Sequence[str] | Tensor | Sequence[Sequence[int]],
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        mask: Tensor | None = None,
        stop: int | Sequence[int] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Generated:
        """Continue prompts by at most `tokens` tokens, each for itself.

        What the folder's generation config says of penalties and of ids that are forced or forbidden is
        obeyed; of top_k, top_p and the like when tokens are drawn. `do_sample` and its temperature are not:
        `temperature` decides.

        Args:
            prompt: a text or several, or ids [batch, length]; shorter ones are padded on the left.
            tokens: new tokens at most; fewer when every sequence has met an id of `stop`.
            temperature: 0 takes the likeliest token, more draws from the softmax of logits / temperature.
            seed: of the draw.
            mask: [batch, length], 0 where ids are padding; it stands on the left.
            stop: the ids that end a sequence, the one met repeated after it; None takes all that the
                generation config, the config and the tokenizer name.
            watch: called with the new ids [batch] of every step.

        Raises:
            OptionError: for numbers out of range, text without a tokenizer, or padding that the model would
                take for places between its own prompt and the text.
            DataError: for a generation config that cannot be meant, more tokens than the model has
                positions, or ids beyond its vocabulary.
        """
        if tokens < 1 or temperature < 0:
            raise OptionError("tokens must be at least 1, and temperature at least 0")
        given, known = self._prompt(prompt, mask)
        if self._unpadded and not bool(known.all()):
            raise OptionError(_ONE_LENGTH)
        self.admission.check_ids(int(given.max()), "the prompt's tokens")
        # The last new token is never given.
        self.admission.check_length(given.shape[1] + tokens - 1, "a prompt and its continuation")
        ends = self._defaults.ends if stop is None else ids_of(stop)
        # Written once at full length: a step of a small model takes no longer than a few tensor calls.
        start, length = given.shape[1], given.shape[1] + tokens
        state = _State(self, torch.nn.functional.pad(given, (0, tokens)), known, ends)
        state.choose_by(temperature, self._rules(known[:, :start], ends, tokens, temperature), seed)
        seconds = []
        for end in range(start, length):
            started = time.perf_counter()
            new = state.step(end)
            seconds.append(time.perf_counter() - started)
            if watch is not None:
                watch(new)
            if bool(state.ended.all()):
                break
        return Generated(state.ids[:, : end + 1], seconds[0], tuple(seconds[1:]))

    def _rules(
        self, known: Tensor, ends: Sequence[int], tokens: int, temperature: float
    ) -> list[list[Callable[[Tensor, Tensor], Tensor]]]:
        """The rules of each row: lengths are those of its own prompt `[length]`."""
        sizes = [int(row.sum()) for row in known]
        return [self._defaults.rules(ends, size, size + tokens, temperature) for size in sizes]

    def _prompt(self, prompt: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and mask, each `[batch, length]`."""
        if isinstance(prompt, str):
            prompt = [prompt]
        if not isinstance(prompt, Tensor):
            rows = [self._encoded(row) if isinstance(row, str) else list(row) for row in prompt]
            if not all(rows):
                raise OptionError(_NO_PROMPT)
            if len({len(row) for row in rows}) > 1 and mask is None:
                return self._padded(rows)
            prompt = rows
        ids = torch.as_tensor(prompt, dtype=torch.long)
        if ids.dim() != 2 or ids.numel() == 0:
            raise OptionError(_NO_PROMPT)
        return ids, torch.ones_like(ids) if mask is None else mask.long()

    def _encoded(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise OptionError(f"'{self.path.parent}' has no tokenizer; give token ids")
        return list(self.tokenizer(text)["input_ids"])

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of different lengths with padding on the left, and their mask."""
        filler = getattr(self.tokenizer, "pad_token_id", None) or 0
        length = max(map(len, rows))
        ids = [[filler] * (length - len(row)) + list(row) for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids), torch.tensor(mask)

    def _step(self, given: Mapping[str, Tensor], caches: Caches) -> Tensor:
        """Logits `[batch, vocabulary]` of the last of the ids given `[batch, n]`; the caches grow by n."""
        feeds = {k: v.contiguous().numpy() for k, v in given.items() if k in self._fed}
        return torch.from_numpy(caches.step(feeds))[:, -1]


class _State:
    """Sequences that grow: `ids [batch, prompt + tokens]`, caches, and the rows that have `ended`."""

    def __init__(self, model: Generator, ids: Tensor, mask: Tensor, ends: Sequence[int]) -> None:
        self.model, self.ids, self.start = model, ids, mask.shape[1]
        self.known = torch.ones_like(ids)
        self.known[:, : self.start] = mask
        self.places = (self.known.cumsum(1) - 1).clamp_min(0)
        self.ends = torch.tensor(ends, dtype=torch.long)
        self.ended = torch.zeros(len(ids), dtype=torch.bool)
        self.seen = 0
        self.caches = empty_caches(model.session, *ids.shape)

    def choose_by(
        self, temperature: float, rules: list[list[Callable[[Tensor, Tensor], Tensor]]], seed: int
    ) -> None:
        """How tokens are taken: by these rules for each row."""
        self.temperature, self.rules = temperature, rules
        self.draw = torch.Generator().manual_seed(seed)

    def step(self, end: int) -> Tensor:
        """Write the ids `[batch]` that follow the first `end`."""
        if self._turns(end):
            # Keys of before were turned by other angles.
            self.caches, self.seen = empty_caches(self.model.session, *self.ids.shape), 0
        given = {
            "input_ids": self.ids[:, self.seen : end],
            "attention_mask": self.known[:, :end],
            "position_ids": self.places[:, self.seen : end],
        }
        new = chosen(
            self._ruled(self.model._step(given, self.caches), end), self.temperature, self.draw
        )
        if self.ends.numel():
            new = torch.where(self.ended, self.ids[:, end - 1], new)
            self.ended |= torch.isin(new, self.ends)
        self.ids[:, end], self.seen = new, end
        return new

    def _turns(self, end: int) -> bool:
        """Whether the rotary angles of all tokens change with the ones that are read next."""
        switch = self.model._switch
        if switch is None or self.seen == 0:
            return False
        return (
            int(self.places[:, self.seen - 1].max()) < switch <= int(self.places[:, end - 1].max())
        )

    def _ruled(self, logits: Tensor, end: int) -> Tensor:
        """Logits `[batch, vocabulary]` after the rules, each row by the ids that are its own."""
        if not any(self.rules):
            return logits
        rows = []
        for row, rules in enumerate(self.rules):
            ids = self.ids[row, :end][self.known[row, :end].bool()][None]
            value = logits[row : row + 1]
            for rule in rules:
                value = rule(ids, value)
            rows.append(value)
        return torch.cat(rows)


def load_onnx(
    folder: str | Path,
    *,
    threads: int = 0,
    trust_remote_code: bool = False,
    verify: bool = True,
) -> Generator:
    """The model of a folder that `onnx-decode` has written, or of a run's folder that holds one.

    `threads` is for each op; 0 takes as many as the machine has cores. Code that comes with the
    tokenizer runs only when trusted; `verify=False` leaves out the hashes of the files. Raises DataError
    when there is no model or it is not what was written, OptionError for a number of threads.
    """
    if not 0 <= threads <= _MOST_THREADS:
        raise OptionError(f"threads={threads} must be from 0 to {_MOST_THREADS}")
    folder = Path(folder)
    for place in (folder, folder / FORMAT):
        if (place / FILE).is_file():
            return Generator(
                place / FILE, threads=threads, trust_remote_code=trust_remote_code, verify=verify
            )
    raise DataError(f"'{folder}' holds no {FILE}; export the model to {FORMAT}")
