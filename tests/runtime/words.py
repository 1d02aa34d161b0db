"""A tokenizer whose tokens are words."""

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


def word_tokenizer(words: dict[str, int]) -> transformers.PreTrainedTokenizerFast:
    """One that knows these words by number, `[PAD]` and `[UNK]` among them."""
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
