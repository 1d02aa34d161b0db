"""What sequences a model takes is known before it runs; longer ones and larger ids are refused."""

import logging

import pytest
import torch
import transformers

from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, OptionError
from sparsify.ir.facts.admission import Admission, admission_of_model, admission_of_program
from sparsify.ir.facts.fitting import Extent, extent

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
WIDE = {"hidden_size": 16, "intermediate_size": 16, **SMALL}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 50}
# A config, and what its model takes.
CASES = {
    "rotary": (transformers.LlamaConfig(max_position_embeddings=64, **WIDE), (50, 64, False)),
    "table": (transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **GPT), (50, 64, True)),
    "behind padding": (
        transformers.RobertaConfig(max_position_embeddings=66, pad_token_id=1, **WIDE),
        (50, 64, True),
    ),
    "two rows more": (
        transformers.OPTConfig(
            hidden_size=16, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64, **SMALL
        ),
        (50, 64, True),
    ),
    "computed table": (
        transformers.GPTJConfig(rotary_dim=4, bos_token_id=0, eos_token_id=0, **GPT),
        (50, 64, True),
    ),
    "distances": (
        transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=50),
        (50, None, False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_positions_are_read_off_config_and_tables(name):
    config, (vocabulary, positions, fixed) = CASES[name]
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    assert admission_of_model(model) == Admission(vocabulary, positions, fixed)


def test_programs_and_plain_modules(traced):
    assert admission_of_program(traced("gpt2")) == Admission(300, 128, fixed=True)
    assert admission_of_program(traced("block")) == Admission(11)
    assert admission_of_program(traced("mlp")) == Admission()


def test_a_fixed_bound_refuses_and_another_warns(caplog):
    with pytest.raises(DataError) as caught:
        Admission(50, 64, fixed=True).check_length(65, "sequences")
    assert str(caught.value) == (
        "sequences of 65 tokens are too long for the model, which has 64 positions"
    )
    Admission(50, 64, fixed=True).check_length(64, "sequences")
    with caplog.at_level(logging.WARNING, logger="sparsify"):
        Admission(50, 64).check_length(65, "sequences")
    assert caplog.messages == [
        "sequences of 65 tokens are longer than the 64 that the model states; "
        "it runs, as in transformers, but has not learnt such positions"
    ]


def test_the_extent_of_data():
    ids = torch.tensor([[3, 9, 4], [1, 2, 8]])
    assert extent(TextData(ids.flatten(), 3)) == Extent(largest=9, longest=3, label=9)
    assert extent(TensorData({"input_ids": ids})) == Extent(largest=9, longest=3, label=-1)
    assert extent(TensorData({"x": torch.rand(2, 3, 4)})) == Extent(-1, -1, -1)


TRAIN = "train{steps=1 batch=2}"
# A family, the pipeline, ids, their length, the error and what it says.
DATA = [
    ("llama", "insert-probes | calibrate", 300, 12, DataError,
     "the sequences hold the id 300, but the model has a vocabulary of 300; "
     "the tokenizer is another model's"),
    ("gpt2", "insert-probes | calibrate", 299, 130, DataError,
     "the sequences of 130 tokens are too long for the model, which has 128 positions"),
    ("bert-base", TRAIN, 299, 12, OptionError,
     f"pass 1 of 1, '{TRAIN}', 'last_hidden_state' [2, 13, 64] has no logits for the label 299 of a "
     "token; train a model with a head for them, or by distillation only (task=0)"),
    ("bert-base", "allocate-values", 299, 12, OptionError,
     "pass 1 of 1, 'allocate-values', 'last_hidden_state' [2, 13, 64] has no logits for the label 299 of a "
     "token; there is no loss to measure; choose values in insert-quantizers"),
    ("bert-base", "insert-masks | choose-masks{score=taylor sparsity=0.5}", 299, 12, OptionError,
     "pass 2 of 2, 'choose-masks{score=taylor sparsity=0.5}', 'last_hidden_state' [2, 13, 64] has no logits "
     "for the label 299 of a token; score=taylor has no loss; choose another score"),
    ("llama", "train{steps=1 batch=100000}", 299, 12, OptionError,
     "pass 1 of 1, 'train{steps=1 batch=100000}', batch=100000 goes through the 4 sequences of "
     "the data 25,000 times a step; take a smaller batch or bring more text"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "largest", "length", "kind", "sentence"), DATA)
def test_data_is_held_against_the_program_first(
    family, text, largest, length, kind, sentence, traced
):
    data = TextData(torch.arange(4 * length) % 40 + largest - 39, length)
    with pytest.raises(kind) as caught:
        parse(text).check(traced(family), Context(data=data))
    assert str(caught.value) == sentence
