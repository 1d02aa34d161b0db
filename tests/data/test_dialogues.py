"""Dialogues: only answers carry labels, through files, templates and cuts."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sparsify.data.load import load_data
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError
from sparsify.train.program_model import ProgramModel

WORDS = ("[PAD]", "[END]", "[UNK]", "one", "two", "three", "four", "user", "assistant", "system")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def tokenizer():
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )


@pytest.fixture
def written(tmp_path):
    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return str(path)

    return write


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_prompts_and_padding_carry_no_label(tokenizer, written):
    path = written(
        {"prompt": "one two", "response": "three"}, {"prompt": "one", "response": "four four two"}
    )
    data = load_data(path, tokenizer, 8, "chat")
    assert (len(data), data.length) == (2, 8)
    batch = data.batch([0, 1])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 1, 0], [3, 6, 6, 4, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 5, 1, -100], [-100, 6, 6, 4, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_every_answer_of_a_dialogue_is_learnt(tokenizer, written):
    row = turns(("system", "one"), ("user", "two"), ("assistant", "three"), ("user", "four"),
                ("assistant", "one one"))  # fmt: skip
    batch = load_data(written(row), tokenizer, 16, "chat").batch([0])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 1, 6, 3, 3, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 5, 1, -100, 3, 3, 1]]


def test_a_chat_template_is_followed(tokenizer, written):
    tokenizer.chat_template = TEMPLATE
    row = turns(("user", "two"), ("assistant", "three"), ("user", "four"), ("assistant", "one"))
    batch = load_data(written(row), tokenizer, 16, "chat").batch([0])
    assert batch["input_ids"].tolist() == [[7, 4, 8, 5, 7, 6, 8, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 5, -100, -100, -100, 3]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, written):
    tokenizer.chat_template = "{{ messages | length }} " + TEMPLATE
    row = turns(("user", "two"), ("assistant", "three"))
    with pytest.raises(DataError, match="rewrites earlier turns"):
        load_data(written(row), tokenizer, 16, "chat")


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate\nuser and assistant') }}{% endif %}"
    "{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
GOOD = turns(("user", "one"), ("assistant", "two"))


@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        (
            turns(("system", "one"), ("user", "one"), ("assistant", "two")),
            NO_SYSTEM,
            "(system, user): System role not supported",
        ),
        (
            turns(("user", "one"), ("user", "one"), ("assistant", "two")),
            NO_SYSTEM,
            "(user, user): Roles must alternate",
        ),
        (turns(("assistant", "two")), NO_SYSTEM, "(no turn before the answer): "),
        (GOOD, "{{ messages[0]['nothing'] + 1 }}", "(user): "),
        (GOOD, "{{ messages[0]['content'] / 2 }}", "(user): unsupported operand"),
        (GOOD, "{% for", "(user): "),
    ],
)
def test_a_dialogue_that_the_template_refuses_is_named(row, template, reason, tokenizer, written):
    tokenizer.chat_template = template
    data = (
        written({"prompt": "one", "response": "two"}, row)
        if template is NO_SYSTEM
        else written(row)
    )
    line = 2 if template is NO_SYSTEM else 1
    with pytest.raises(DataError) as caught:
        load_data(data, tokenizer, 20, "chat")
    said = str(caught.value)
    assert said.startswith(f"'{data}' line {line}: the chat template refuses the dialogue {reason}")
    assert said.endswith("; change its roles or leave it out")
    assert "\n" not in said


def test_dialogues_are_cut_and_those_without_an_answer_left_out(tokenizer, written):
    long = {"prompt": "one two three four", "response": "one"}
    short = {"prompt": "one two", "response": "three four one"}
    data = load_data(written(long, short), tokenizer, 4, "chat")
    assert data.batch([0])["labels"].tolist() == [[-100, -100, 5, 6]]
    assert len(data) == 1
    with pytest.raises(DataError, match="no dialogue has an answer within 4 tokens"):
        load_data(written(long), tokenizer, 4, "chat")


def test_a_folder_is_read_in_the_order_of_its_paths(tokenizer, written, tmp_path):
    written({"prompt": "two", "response": "two"}, name="b.jsonl")
    written({"prompt": "one", "response": "one"}, name="a.jsonl")
    data = load_data(str(tmp_path), tokenizer, 4, "chat")
    assert [data.batch([i])["input_ids"][0, 0].item() for i in (0, 1)] == [3, 4]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{", "line 1 is not JSON"),
        ({"prompt": "one"}, "line 1 has neither strings"),
        ({"prompt": "one", "response": 3}, "line 1 has neither strings"),
        ({"messages": []}, "line 1 has neither strings"),
        (turns(("user", "one")), "an answer of the assistant"),
        ({"text": "one"}, "line 1 has neither strings"),
        ("", "hold no row"),
    ],
)
def test_rows_of_another_form_are_refused(row, sentence, tokenizer, written):
    with pytest.raises(DataError, match=sentence):
        load_data(written(row), tokenizer, 8, "chat")


@pytest.mark.parametrize("spec", ["none.jsonl", "data.txt", "folder"])
def test_what_is_no_dialogue_file_is_refused(spec, tokenizer, tmp_path):
    (tmp_path / "data.txt").write_text("one")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"must be a \.jsonl file, or a folder that has some"):
        load_data(str(tmp_path / spec), tokenizer, 8, "chat")


def test_the_loss_counts_answers_alone_and_training_learns_them(tokenizer, written, traced):
    rows = [{"prompt": p, "response": f"{p} {p}"} for p in ("one", "two", "three", "four")]
    data = load_data(written(*rows), tokenizer, 8, "chat")
    program = traced("llama")
    batch = data.batch([0, 1])
    logits = program.run(batch)[0]
    found = float(ProgramModel(program)(**batch).loss.detach())
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    )
    # Two words and the end are learnt of each row.
    assert int((losses != 0).sum()) == 6
    assert found == pytest.approx(float(losses.sum() / 6), abs=1e-5)
    context = Context(data=data)
    text = "insert-omission | train{steps=25 batch=4 lr=0.01 schedule=lors} | remove-omission"
    parse(text).run(program, context)
    answers = program.run(data.batch([0, 1, 2, 3]))[0].argmax(-1)
    assert answers[:, 0].tolist() == [3, 4, 5, 6]
