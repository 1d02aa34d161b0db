"""Text from an ONNX file with a key/value cache, on ONNX Runtime; behind an encoder where there is one."""

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
from sparsify.runtime.caches import PAST, Array, Caches, empty_caches
from sparsify.runtime.encoder import (
    DECODER_IDS,
    ENCODER,
    IDS,
    MASK,
    Encoder,
    first_ids,
)
from sparsify.runtime.prompts import NO_PROMPT, Prompt, Prompts
from sparsify.runtime.sampling import Defaults, chosen
from sparsify.runtime.session import UNPADDED, onnxruntime_session

FILE = "model.onnx"
FORMAT = "onnx-decode"
_ONE_LENGTH = (
    "the prompts are of different lengths; this model has a prompt of its own and sees a window of places, "
    "in which padding would stand: give prompts of one length, or one at a time"
)
_NOT_TEXT = "the model's encoder takes {0}, not text; give a mapping from these names to tensors"
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Generated:
    """What came out: `ids [batch, prompt + new]`, seconds for the prompt, and for each token after it.

    Behind an encoder the ids are the decoder's alone: what it began with, and what is new.
    """

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
        names = {entry.name for entry in self.session.get_inputs()}
        own = {name for name in names if not name.startswith(PAST)}
        encoder = path.with_name(ENCODER)
        self.encoder = Encoder(encoder, self.session, threads) if encoder.is_file() else None
        self._prompts = Prompts(self.tokenizer, path.parent, behind=self.encoder is not None)
        self._ids = IDS if self.encoder is None else DECODER_IDS
        if own == names or self._ids not in own:
            raise DataError(f"'{path}' takes no cache; export to {FORMAT}")
        self._fed = own if self.encoder is None else {DECODER_IDS}
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
        prompt: Prompt,
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        mask: Tensor | None = None,
        begin: Sequence[int] | None = None,
        stop: int | Sequence[int] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Generated:
        """Continue prompts by at most `tokens` tokens, each for itself; an encoder's are answered.

        What the folder's generation config says of penalties and of ids that are forced or forbidden is
        obeyed; of top_k, top_p and the like when tokens are drawn. `do_sample` and its temperature are not:
        `temperature` decides.

        Args:
            prompt: a text or several, or ids [batch, length]; shorter ones are padded on the left, for an
                encoder on the right. What else an encoder takes is a mapping from names to tensors.
            tokens: new tokens at most; fewer when every sequence has met an id of `stop`.
            temperature: 0 takes the likeliest token, more draws from the softmax of logits / temperature.
            seed: of the draw.
            mask: [batch, length], 0 where ids are padding; it stands on the left.
            begin: the ids that a decoder behind an encoder begins with; None takes what the configs say.
            stop: the ids that end a sequence, the one met repeated after it; None takes all that the
                generation config, the config and the tokenizer name.
            watch: called with the new ids [batch] of every step.

        Raises:
            OptionError: for numbers out of range, text without a tokenizer, inputs that are not the
                encoder's, or padding that the model would take for places before the text.
            DataError: for a generation config that cannot be meant, more tokens than the model has
                positions, or ids beyond its vocabulary.
        """
        if tokens < 1 or temperature < 0:
            raise OptionError("tokens must be at least 1, and temperature at least 0")
        began = time.perf_counter()
        given, known, fixed = self._begun(prompt, mask, begin)
        read = time.perf_counter() - began if fixed else 0.0
        # The last new token is never given.
        self.admission.check_length(given.shape[1] + tokens - 1, "a prompt and its continuation")
        ends = self._defaults.ends if stop is None else ids_of(stop)
        # Written once at full length: a step of a small model takes no longer than a few tensor calls.
        start, length = given.shape[1], given.shape[1] + tokens
        state = _State(self, torch.nn.functional.pad(given, (0, tokens)), known, ends, fixed)
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
        return Generated(state.ids[:, : end + 1], read + seconds[0], tuple(seconds[1:]))

    def _begun(
        self, prompt: Prompt, mask: Tensor | None, begin: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, dict[str, Array]]:
        """The ids that are there and their mask, each `[batch, length]`, and what an encoder has read."""
        if self.encoder is None:
            if begin is not None or isinstance(prompt, Mapping):
                raise OptionError(f"'{self.path.parent}' has no encoder: {NO_PROMPT}")
            given, known = self._prompts.ids(prompt, mask)
            if self._unpadded and not bool(known.all()):
                raise OptionError(_ONE_LENGTH)
            self.admission.check_ids(int(given.max()), "the prompt's tokens")
            return given, known, {}
        if not isinstance(prompt, Mapping):
            if not self.encoder.reads_text:
                raise OptionError(_NOT_TEXT.format(", ".join(self.encoder.inputs)))
            ids, known = self._prompts.ids(prompt, mask)
            self.admission.check_ids(int(ids.max()), "the prompt's tokens")
            self.admission.check_length(ids.shape[1], "a prompt")
            prompt = {IDS: ids, MASK: known} if MASK in self.encoder.inputs else {IDS: ids}
        inputs = {name: torch.as_tensor(value) for name, value in prompt.items()}
        fixed = self.encoder.encoded(inputs)
        first = first_ids((self._defaults.said, self._defaults.config), begin)
        given = torch.tensor([first] * len(next(iter(inputs.values()))))
        self.admission.check_ids(int(given.max()), "the ids that the decoder begins with")
        return given, torch.ones_like(given), fixed

    def _rules(
        self, known: Tensor, ends: Sequence[int], tokens: int, temperature: float
    ) -> list[list[Callable[[Tensor, Tensor], Tensor]]]:
        """The rules of each row: lengths are those of its own prompt `[length]`."""
        sizes = [int(row.sum()) for row in known]
        return [self._defaults.rules(ends, size, size + tokens, temperature) for size in sizes]

    def _step(self, given: Mapping[str, Tensor], caches: Caches) -> Tensor:
        """Logits `[batch, vocabulary]` of the last of the ids given `[batch, n]`; the caches grow by n."""
        feeds = {k: v.contiguous().numpy() for k, v in given.items() if k in self._fed}
        return torch.from_numpy(caches.step(feeds))[:, -1]


class _State:
    """Sequences that grow: `ids [batch, prompt + tokens]`, caches, and the rows that have `ended`."""

    def __init__(
        self,
        model: Generator,
        ids: Tensor,
        mask: Tensor,
        ends: Sequence[int],
        fixed: Mapping[str, Array],
    ) -> None:
        self.model, self.ids, self.start, self.fixed = model, ids, mask.shape[1], fixed
        self.known = torch.ones_like(ids)
        self.known[:, : self.start] = mask
        self.places = (self.known.cumsum(1) - 1).clamp_min(0)
        self.ends = torch.tensor(ends, dtype=torch.long)
        self.ended = torch.zeros(len(ids), dtype=torch.bool)
        self.seen = 0
        self.caches = empty_caches(model.session, ids.shape[0], ids.shape[1], fixed)

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
            rows, length = self.ids.shape
            self.caches = empty_caches(self.model.session, rows, length, self.fixed)
            self.seen = 0
        given = {
            self.model._ids: self.ids[:, self.seen : end],
            MASK: self.known[:, :end],
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
