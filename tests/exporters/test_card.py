"""The model card of every format: its head, its figures, and code that does what it says."""

from dataclasses import replace

import pytest
from huggingface_hub import metadata_load

import exporters
from exporters.safetensors import Safetensors
from sparsify.describe.card import card
from sparsify.describe.facts import Facts, Weight
from sparsify.engine.export import write_checked
from sparsify.pretrained.origin import CARD

FACTS = Facts(
    model="SomeForCausalLM",
    task="text-generation",
    pipeline=("insert-masks", "choose-masks{pattern=2:4}", "pack-nm{values=int8}"),
    parameters=1_000,
    were=1_500,
    zeros=300,
    multiply_adds=64_000,
    length=128,
    weights=(
        Weight("layers.0.up.weight", (20, 10), (20, 20), 100, "2:4", True, "int8", 140),
        Weight("layers.1.up.weight", (20, 10), (20, 20), 100, "2:4", True, "int8", 140),
        Weight("head.weight", (20, 20), (20, 20), 0, "", False, "float32", 1600),
    ),
)


def test_the_text_of_a_card():
    carried = {"license": "mit", "base_model": "org/name"}
    text = card(FACTS, "onnx-decode", "onnx", "import this", 4321, carried)
    assert text.startswith("---\nbase_model: org/name\nlibrary_name: onnx\nlicense: mit\n")
    assert "# org/name, made sparse\n" in text
    assert "```\ninsert-masks\n| choose-masks{pattern=2:4}\n| pack-nm{values=int8}\n```" in text
    for row in (
        "| parameters | 1,500 | 1,000 |",
        "| not zero |  | 700 |",
        "| zeros among the weights of linear maps |  | 25.0 % |",
        "| multiply-adds on 128 tokens |  | 64,000 |",
        "| bytes of the files |  | 4,321 |",
        "| bytes of the 2 packed weights | 1,600 | 280 |",
        "| `layers.*.up` | 2 | 50.0 % | 50.0 % | 2:4 | packed int8 |",
        "| `head` | 1 | 0.0 % | 0.0 % |  | float32 |",
    ):
        assert f"{row}\n" in text
    assert "```python\nimport this\n```" in text
    assert text.endswith("That of the source, as its card states it: mit.\n")


def test_a_commit_is_told_and_no_entry_of_the_head():
    origin = {"base_model": ["org/a", "org/b"], "revision": "0a1b2c", "license_text": "terms"}
    text = card(FACTS, "onnx", "onnx", "", 1, origin)
    head, _, rest = text.partition("\n---\n")
    assert "- org/a\n- org/b\n" in head
    assert "0a1b2c" not in head
    assert "# org/a, org/b, made sparse\n" in rest
    assert "The source is at commit `0a1b2c`. This pipeline, in the order of its passes:" in rest
    assert "terms" not in text


def test_the_head_is_what_the_hub_reads(tmp_path):
    (tmp_path / CARD).write_text(card(FACTS, "onnx", "onnx", "", 1, {}))
    assert metadata_load(tmp_path / CARD) == {
        "library_name": "onnx",
        "pipeline_tag": "text-generation",
        "tags": ["sparsify-fx", "onnx", "sparse", "pruned", "2:4", "int8"],
    }


def test_nothing_is_made_up():
    weight = Weight("a.weight", (2, 5), (), 0, "", False, "float32", 40)
    plain = Facts("Net", "", (), 10, 0, 0, 5, 0, (weight,))
    text = card(plain, "safetensors", "sparsify-fx", "", 1, {})
    for word in ("license", "base_model", "pipeline_tag", "```", "sparse\n"):
        assert word not in text
    assert "no pass has changed it" in text
    assert "| parameters |  | 10 |" in text
    assert "look it up there" in text


@pytest.mark.parametrize("form", [item.name for item in exporters.ALL])
def test_the_code_of_a_card_runs_in_its_folder(form, programs, tokenizer, tmp_path, monkeypatch):
    program = programs("llama")
    if form in ("huggingface", "onnx-decode"):
        program.tokenizer = tokenizer
    (kind,) = [item for item in exporters.ALL if item.name == form]
    folder = write_checked(kind(), program, tmp_path)
    head, _, rest = (folder / CARD).read_text().partition("```python\n")
    assert metadata_load(folder / CARD)["library_name"] == kind.library
    assert "said{so=true}" in head
    monkeypatch.chdir(folder)
    made = {}
    exec(rest.partition("```")[0], made)
    assert {"model", "outputs", "ids"} & set(made)


def test_a_card_of_your_own_is_kept_and_the_licence_goes_along(programs, tmp_path):
    program = programs("llama")
    origin = {"license": "other", "license_link": "LICENSE", "license_text": "terms"}
    program.source = replace(program.source, origin=origin)
    folder = write_checked(Safetensors(), program, tmp_path)
    assert metadata_load(folder / CARD)["license"] == "other"
    assert (folder / "LICENSE").read_text() == "terms"
    (folder / CARD).write_text("mine")
    with pytest.raises(Exception, match="give --overwrite"):
        write_checked(Safetensors(), program, tmp_path)
    assert (folder / CARD).read_text() == "mine"
