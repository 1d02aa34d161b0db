"""Generation does what the folder says, as transformers does: ends, penalties, several texts."""

import shutil

import pytest
import torch
import transformers

from exporters.onnx_decode import OnnxDecode
from sparsify.disk.files import read_json, write_json
from sparsify.engine.export import write_checked
from sparsify.errors import DataError, OptionError
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.rope import switch_length
from sparsify.runtime.generate import load_onnx
from tests.runtime.words import word_tokenizer

PROMPT = torch.tensor([[9, 8, 3, 7, 5, 6]])
TEXTS = ["w9 w8 w3 w7 w5 w6", "w4 w11 w20", "w31"]
TOKENS = 12


@pytest.fixture(scope="module")
def dense(build):
    model = build("llama")
    model.generation_config.eos_token_id = None  # else it ends what names no end
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer({"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, 300)}})


@pytest.fixture(scope="module")
def exported(dense, tokenizer, tmp_path_factory):
    program = trace(dense)
    program.tokenizer = tokenizer
    return write_checked(OnnxDecode(), program, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def opened(exported, tmp_path):
    """The model with another generation config."""

    def make(**said):
        folder = tmp_path / f"opened-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(exported, folder)
        write_json(folder / "generation_config.json", said)
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "eos_token_id": None})
        return load_onnx(folder, threads=1)

    return make


def theirs(dense, ids=PROMPT, tokens=TOKENS, **said):
    config = transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, pad_token_id=0, **said
    )
    return dense.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


def met(dense):
    """The id that greedy generation takes fourth."""
    return int(theirs(dense)[0, PROMPT.shape[1] + 3])


def test_every_id_of_a_list_ends(dense, opened):
    ends = [299, met(dense)]
    wanted = theirs(dense, eos_token_id=ends)
    assert wanted.shape[1] < PROMPT.shape[1] + TOKENS
    assert torch.equal(opened(eos_token_id=ends).generate(PROMPT, tokens=TOKENS).ids, wanted)
    model = opened()
    for stop in (ends, tuple(ends), met(dense)):
        assert torch.equal(model.generate(PROMPT, tokens=TOKENS, stop=stop).ids, wanted)
    assert model.generate(PROMPT, tokens=TOKENS, stop=[]).ids.shape[1] == PROMPT.shape[1] + TOKENS


def test_ends_are_those_of_both_configs_and_the_tokenizer(dense, opened):
    model = opened(eos_token_id=[7, 8])
    config = read_json(model.path.parent / "config.json")
    write_json(model.path.parent / "config.json", {**config, "eos_token_id": met(dense)})
    again = load_onnx(model.path.parent, threads=1)
    assert again._defaults.ends == (7, 8, met(dense))
    assert torch.equal(
        again.generate(PROMPT, tokens=TOKENS).ids, theirs(dense, eos_token_id=met(dense))
    )


@pytest.mark.parametrize(
    "said",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": "met"},
        {"bad_words_ids": "met"},
        {"begin_suppress_tokens": list(range(1, 300, 2))},
        {"min_new_tokens": 9, "eos_token_id": "met"},
        {"min_length": 13, "eos_token_id": "met"},
        {"forced_eos_token_id": 77},
        {"repetition_penalty": 0.3, "no_repeat_ngram_size": 3, "suppress_tokens": "met"},
    ],
    ids=lambda said: ",".join(said),
)
def test_a_generation_config_is_obeyed_token_for_token(said, dense, opened):
    fourth = met(dense)
    forms = {"bad_words_ids": [[fourth]], "eos_token_id": fourth}
    said = {k: forms.get(k, [fourth]) if v == "met" else v for k, v in said.items()}
    wanted = theirs(dense, **said)
    assert not torch.equal(wanted, theirs(dense))
    assert torch.equal(opened(**said).generate(PROMPT, tokens=TOKENS).ids, wanted)


def test_texts_go_on_as_each_would_alone(dense, opened):
    model = opened(eos_token_id=[met(dense)], repetition_penalty=1.1)
    together = model.generate(TEXTS, tokens=TOKENS)
    assert together.ids.shape[0] == 3
    length = PROMPT.shape[1]
    for row, text in zip(together.ids, TEXTS, strict=True):
        alone = model.generate(text, tokens=TOKENS).ids[0]
        size = len(text.split())
        assert torch.equal(row[length - size : length + len(alone) - size], alone)
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        assert torch.equal(
            theirs(dense, ids, eos_token_id=[met(dense)], repetition_penalty=1.1)[0], alone
        )
        # What ended goes on with the id that ended it.
        assert set(row[length + len(alone) - size :].tolist()) <= {met(dense)}
    ragged = [[int(word[1:]) for word in text.split()] for text in TEXTS]
    assert torch.equal(model.generate(ragged, tokens=TOKENS).ids, together.ids)


def test_draws_keep_to_top_k(opened):
    free = opened().generate(PROMPT, tokens=TOKENS, temperature=2.0, seed=1).ids
    greedy = opened().generate(PROMPT, tokens=TOKENS).ids
    held = opened(top_k=1).generate(PROMPT, tokens=TOKENS, temperature=2.0, seed=1).ids
    assert torch.equal(held, greedy)
    assert not torch.equal(free, greedy)


def test_what_is_not_obeyed_is_said_and_nonsense_refused(opened):
    model = opened(num_beams=4, stop_strings=["end"], temperature=0.5, top_p=1.0)
    assert model.notes == [
        f"'{model.path.parent / 'generation_config.json'}' says num_beams, stop_strings, which is not obeyed"
    ]
    assert opened(num_beams=1).notes == []
    with pytest.raises(DataError, match=r"says repetition_penalty=-1, which cannot be meant: ."):
        opened(repetition_penalty=-1).generate(PROMPT)
    for nothing in ([], [[]], [[1], []], ""):
        with pytest.raises(OptionError, match="with at least one token"):
            opened().generate(nothing)


def longrope():
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8, "original_max_position_embeddings": 10,
    }  # fmt: skip
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1}
    return transformers.Phi3Config(
        num_attention_heads=4, num_key_value_heads=2, vocab_size=300, max_position_embeddings=64,
        original_max_position_embeddings=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=rope, **sizes,
    )  # fmt: skip


def test_generation_across_a_switch_of_rotary_angles_reads_the_text_anew(tmp_path):
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(longrope()).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=0.2)
    folder = write_checked(OnnxDecode(), trace(model), tmp_path)
    found = load_onnx(folder, threads=1).generate(PROMPT, tokens=14, stop=[])
    assert torch.equal(found.ids, theirs(model, tokens=14))
    told = read_json(folder / "genai_config.json")
    assert (told["model"]["context_length"], told["search"]["max_length"]) == (10, 10)
    (note,) = read_json(folder / "sparsify.json")["notes"]
    assert note.startswith("beyond 10 tokens the model turns all positions by other angles")


def test_a_switch_is_read_off_the_kind_of_angles():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 8}
    assert switch_length({"rope_parameters": rope}) == 8
    assert switch_length({"rope_parameters": {"full_attention": rope, "other": {}}}) == 8
    assert (
        switch_length({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 9})
        == 9
    )
    assert switch_length({"text_config": {"rope_parameters": rope}}) == 8
    assert switch_length({"rope_parameters": {**rope, "rope_type": "yarn"}}) is None
    assert switch_length({"max_position_embeddings": 8}) is None
