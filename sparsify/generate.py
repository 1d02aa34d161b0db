"""Text from an ONNX file with a key/value cache, on ONNX Runtime."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.caches import PAST, Caches, empty_caches
from sparsify.errors import DataError, OptionError
from sparsify.ir.pretrained import load_tokenizer
from sparsify.session import onnxruntime_session

FILE = "model.onnx"
FORMAT = "onnx-decode"


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
    """An opened model that generates; `tokenizer` is None where the folder has none."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self.path = path
        self.session = onnxruntime_session(path, threads=threads)
        self.tokenizer: Any = load_tokenizer(str(path.parent))
        names = [entry.name for entry in self.session.get_inputs()]
        self._fed = {name for name in names if not name.startswith(PAST)}
        if len(self._fed) == len(names) or "input_ids" not in self._fed:
            raise DataError(f"'{path}' takes no cache; export to {FORMAT}")

    def generate(
        self,
        prompt: str | Tensor | Sequence[Sequence[int]],
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        mask: Tensor | None = None,
        stop: int | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Generated:
        """Continue a prompt by at most `tokens` tokens.

        Args:
            prompt: text, or ids [batch, length].
            tokens: new tokens at most; fewer when every sequence has met `stop`.
            temperature: 0 takes the likeliest token, more draws from the softmax of logits / temperature.
            seed: of the draw.
            mask: [batch, length], 0 where ids are padding; it stands on the left.
            stop: the id that ends a sequence, repeated after it; None takes the tokenizer's.
            watch: called with the new ids [batch] of every step.

        Raises:
            OptionError: for numbers out of range, or text without a tokenizer.
        """
        ids = self._ids(prompt)
        if tokens < 1 or temperature < 0:
            raise OptionError("tokens must be at least 1, and temperature at least 0")
        # Written once at full length: a step of a small model takes no longer than a few tensor calls.
        start, length = ids.shape[1], ids.shape[1] + tokens
        ids = torch.nn.functional.pad(ids, (0, tokens))
        known = torch.ones_like(ids)
        if mask is not None:
            known[:, :start] = mask
        places = (known.cumsum(1) - 1).clamp_min(0)
        stop = getattr(self.tokenizer, "eos_token_id", None) if stop is None else stop
        draw = torch.Generator().manual_seed(seed)
        caches = empty_caches(self.session, len(ids), length)
        ended, seconds, seen = torch.zeros(len(ids), dtype=torch.bool), [], 0
        for end in range(start, length):
            started = time.perf_counter()
            given = {
                "input_ids": ids[:, seen:end],
                "attention_mask": known[:, :end],
                "position_ids": places[:, seen:end],
            }
            chosen = _chosen(self._step(given, caches), temperature, draw)
            if stop is not None:
                chosen = torch.where(ended, stop, chosen)
                ended |= chosen == stop
            ids[:, end], seen = chosen, end
            seconds.append(time.perf_counter() - started)
            if watch is not None:
                watch(chosen)
            if stop is not None and bool(ended.all()):
                break
        return Generated(ids[:, : seen + 1], seconds[0], tuple(seconds[1:]))

    def _ids(self, prompt: str | Tensor | Sequence[Sequence[int]]) -> Tensor:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise OptionError(f"'{self.path.parent}' has no tokenizer; give token ids")
            prompt = [self.tokenizer(prompt)["input_ids"]]
        ids = torch.as_tensor(prompt, dtype=torch.long)
        if ids.dim() != 2 or ids.numel() == 0:
            raise OptionError("a prompt is text or ids [batch, length] with at least one token")
        return ids

    def _step(self, given: Mapping[str, Tensor], caches: Caches) -> Tensor:
        """Logits `[batch, vocabulary]` of the last of the ids given `[batch, n]`; the caches grow by n."""
        feeds = {k: v.contiguous().numpy() for k, v in given.items() if k in self._fed}
        return torch.from_numpy(caches.step(feeds))[:, -1]


def load_onnx(folder: str | Path, *, threads: int = 0) -> Generator:
    """The model of a folder that `onnx-decode` has written, or of a run's folder that holds one.

    `threads` is for each op; 0 takes as many as the machine has cores. Raises DataError when there is none.
    """
    folder = Path(folder)
    for place in (folder, folder / FORMAT):
        if (place / FILE).is_file():
            return Generator(place / FILE, threads=threads)
    raise DataError(f"'{folder}' holds no {FILE}; export the model to {FORMAT}")


def _chosen(logits: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """The next id `[batch]` by logits `[batch, vocabulary]`."""
    if temperature == 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits.double() / temperature, -1)
    return torch.multinomial(shares, 1, generator=draw)[:, 0]
