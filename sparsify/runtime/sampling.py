"""What a folder says of generation: which ids end a sequence, and what is done to logits before one is taken.

The rules are the classes of transformers, in the order in which its `generate` applies them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as rules

from sparsify.disk.files import read_json
from sparsify.errors import DataError
from sparsify.pretrained.companions import ids_of

FILE = "generation_config.json"
_AT_BEGIN = "begin_suppress_tokens"
# Key, the value that does nothing, and the rule of a value, the ends, tokens of the prompt, tokens at most.
_Rule = Callable[[Any, list[int], int, int], Any]
_ALWAYS: tuple[tuple[str, Any, _Rule], ...] = (
    (
        "repetition_penalty",
        1.0,
        lambda v, *_: rules.RepetitionPenaltyLogitsProcessor(float(v)),
    ),
    ("no_repeat_ngram_size", 0, lambda v, *_: rules.NoRepeatNGramLogitsProcessor(v)),
    ("bad_words_ids", None, lambda v, e, *_: rules.NoBadWordsLogitsProcessor(v, e or None)),
    ("min_length", 0, lambda v, e, *_: rules.MinLengthLogitsProcessor(v, e)),
    (
        "min_new_tokens",
        0,
        lambda v, e, n, _: rules.MinNewTokensLengthLogitsProcessor(n, v, e),
    ),
    ("forced_bos_token_id", None, lambda v, *_: rules.ForcedBOSTokenLogitsProcessor(v)),
    (
        "forced_eos_token_id",
        None,
        lambda v, e, n, t: rules.ForcedEOSTokenLogitsProcessor(t, v),
    ),
    ("suppress_tokens", None, lambda v, *_: rules.SuppressTokensLogitsProcessor(v)),
    (
        _AT_BEGIN,
        None,
        lambda v, e, n, _: rules.SuppressTokensAtBeginLogitsProcessor(v, n),
    ),
)
_WHEN_DRAWN: tuple[tuple[str, Any, _Rule], ...] = (
    ("top_k", 0, lambda v, *_: rules.TopKLogitsWarper(v)),
    ("top_p", 1.0, lambda v, *_: rules.TopPLogitsWarper(v)),
    ("min_p", None, lambda v, *_: rules.MinPLogitsWarper(v)),
    ("typical_p", 1.0, lambda v, *_: rules.TypicalLogitsWarper(v)),
)
_NEED_ENDS = ("min_length", "min_new_tokens")
# What would change the tokens and is not done, with the values that do nothing.
_NOT_OBEYED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "dola_layers": (),
    "stop_strings": ([],),
    "force_words_ids": ([],),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "constraints": ([],),
    "watermarking_config": (),
}


class Defaults:
    """The defaults of a folder.

    `ends` are all ids that end a sequence, by the generation config, the config and the tokenizer; `notes`
    says what of the generation config is not obeyed.
    """

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder = folder
        self.said, self.config = (_entries(folder / name) for name in (FILE, "config.json"))
        named = (self.said.get("eos_token_id"), self.config.get("eos_token_id"))
        self.ends = ids_of(*named, getattr(tokenizer, "eos_token_id", None))
        left = [
            key
            for key, neutral in _NOT_OBEYED.items()
            if self.said.get(key) is not None and self.said[key] not in neutral
        ]
        self.notes = (
            [f"'{folder / FILE}' says {', '.join(left)}, which is not obeyed"] if left else []
        )

    def rules(
        self, ends: Sequence[int], prompt: int, total: int, temperature: float
    ) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """What maps ids `[1, n]` and logits `[1, vocabulary]` to new logits, one after the other.

        `prompt` and `total` count tokens before and at most; with `temperature` 0 nothing is drawn.
        Raises DataError for a value that the generation config cannot mean.
        """
        found: list[Callable[[Tensor, Tensor], Tensor]] = self._made(_ALWAYS, ends, prompt, total)
        if temperature > 0:
            found.append(lambda ids, logits: logits.double() / temperature)
            found += self._made(_WHEN_DRAWN, ends, prompt, total)
        return found

    def _made(
        self,
        table: Sequence[tuple[str, Any, _Rule]],
        ends: Sequence[int],
        prompt: int,
        total: int,
    ) -> list[Any]:
        found = []
        for key, neutral, make in table:
            value = self.said.get(key)
            if value is None or value == neutral or (key in _NEED_ENDS and not ends):
                continue
            # A token that is forced on a lone first one comes before what is held to begin.
            forced = prompt == 1 and self.said.get("forced_bos_token_id") is not None
            begins = prompt + (key == _AT_BEGIN and forced)
            try:
                found.append(make(value, list(ends), begins, total))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"'{self.folder / FILE}' says {key}={value}, which cannot be meant: {error}"
                ) from error
        return found


def chosen(logits: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """The next id `[batch]` by logits `[batch, vocabulary]`: the likeliest, or one drawn from the softmax."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits, -1), 1, generator=draw)[:, 0]


def _entries(path: Path) -> dict[str, Any]:
    said = read_json(path) if path.is_file() else {}
    return said if isinstance(said, dict) else {}
