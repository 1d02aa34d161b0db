"""Prompts as ids: texts, lists of ids of different lengths, and what is padding among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import OptionError

NO_PROMPT = "a prompt is text or ids [batch, length] with at least one token"
# A text or several, ids of one or several, or the inputs of an encoder by name.
Prompt = str | Sequence[str] | Tensor | Sequence[Sequence[int]] | Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Reads prompts with the tokenizer of a folder, None where it has none.

    Shorter ones are padded in front, so that each ends where the next token goes; `behind` is for encoders,
    which are taught with padding there.
    """

    tokenizer: Any
    folder: Path
    behind: bool

    def ids(self, prompt: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and mask, each `[batch, length]`; OptionError for what is no prompt."""
        if isinstance(prompt, str):
            prompt = [prompt]
        if not isinstance(prompt, Tensor):
            rows = [self._encoded(row) if isinstance(row, str) else list(row) for row in prompt]
            if not all(rows):
                raise OptionError(NO_PROMPT)
            if len({len(row) for row in rows}) > 1 and mask is None:
                return self._padded(rows)
            prompt = rows
        ids = torch.as_tensor(prompt, dtype=torch.long)
        if ids.dim() != 2 or ids.numel() == 0:
            raise OptionError(NO_PROMPT)
        return ids, torch.ones_like(ids) if mask is None else mask.long()

    def _encoded(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise OptionError(f"'{self.folder}' has no tokenizer; give token ids")
        return list(self.tokenizer(text)["input_ids"])

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of different lengths with padding, and their mask."""
        filler = getattr(self.tokenizer, "pad_token_id", None) or 0
        length = max(map(len, rows))
        ids, mask = torch.full((len(rows), length), filler), torch.zeros(len(rows), length).long()
        for number, row in enumerate(rows):
            place = slice(len(row)) if self.behind else slice(length - len(row), length)
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        return ids, mask
