"""What cannot be meant is said in one sentence before a model is opened, and leaves nothing behind."""

import os
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sparsify.errors import SparsifyError, sentence_of
from sparsify.pretrained.quiet import quiet

MASKS = "insert-masks | choose-masks{sparsity=0.5} | fold-masks"
RUN = ["run", "--model", "nowhere/at-all", "--pipeline", MASKS, "--out", "OUT"]
BENCH = ["bench", "nowhere/a", "--against", "nowhere/b"]
GENERATE = ["generate", "nowhere", "--prompt", "Once"]
STREAM = ["stream", "--model", "nowhere", "--masks", "choose-masks", "--out", "OUT"]
EVAL = ["eval", "nowhere/a", "--data", "nowhere.txt"]
# A command line, and its sentence (for devices, how it begins).
NUMBERS = [
    ([*RUN, "--length", "0"], "--length 0 must be from 2 to 1048576"),
    ([*RUN, "--length", "-5"], "--length -5 must be from 2 to 1048576"),
    ([*STREAM, "--length", "99999999"], "--length 99999999 must be from 2 to 1048576"),
    ([*RUN, "--seed", str(2**63)],
     f"--seed {2**63} must be from -9223372036854775808 to 9223372036854775807"),
    ([*STREAM, "--samples", "0"], "--samples 0 must be from 1 to 10000000"),
    ([*STREAM, "--batch", "-1"], "--batch -1 must be from 1 to 1000000"),
    ([*EVAL, "--limit", "0"], "--limit 0 must be from 1 to 1000000000"),
    ([*BENCH, "--rounds", "0"], "--rounds 0 must be from 1 to 100000"),
    ([*BENCH, "--threads", "-1"], "--threads -1 must be from 0 to 1024"),
    ([*BENCH, "--tokens", "1,9999999999"],
     "--tokens must be lengths of at least 1 and at most 1048576, not [1, 9999999999]"),
    ([*GENERATE, "--tokens", "0"], "--tokens 0 must be from 1 to 1048576"),
    ([*GENERATE, "--temperature", "nan"], "--temperature nan must be from 0 to 1000"),
    ([*GENERATE, "--threads", "5000"], "--threads 5000 must be from 0 to 1024"),
    (["demo", "--threads", "-2"], "--threads -2 must be from 0 to 1024"),
    ([*RUN, "--device", "foo"], "device foo cannot be used here: Expected one of cpu"),
    ([*RUN, "--device", "meta"], "device meta cannot be used here: it holds no numbers"),
    ([*RUN, "--device", "auto"], "device auto cannot be used here: Expected one of cpu"),
    ([*STREAM, "--device", "foo"], "device foo cannot be used here: Expected one of cpu"),
    ([*RUN, "--to", "onnx|onnx"], "'onnx|onnx' is not one format; separate formats by commas"),
    ([*RUN, "--to", "onnx,onnx{opset=20}"], "the format onnx is named twice"),
    ([*RUN, "--to", ","], "no format to export to is named"),
    (["export", "nowhere", "--to", ","], "no format to export to is named"),
]  # fmt: skip


def refused(words, cli, folder):
    code, printed, error = cli(*(str(folder / "out") if word == "OUT" else word for word in words))
    assert (code, printed) == (1, "")
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert not [path for path in folder.rglob("*") if path.is_file()]
    return error.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(("words", "sentence"), NUMBERS)
def test_numbers_devices_and_formats(words, sentence, cli, tmp_path):
    said = refused(words, cli, tmp_path)
    assert said.startswith(sentence) if "Expected" in sentence else said == sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there(cli, tmp_path):
    said = refused([*RUN, "--device", "cuda:0"], cli, tmp_path)
    assert said.startswith("device cuda:0 cannot be used here: ")


PIPELINES = [
    ("train{steps=3 lr=nan}", "train{lr=nan} is no finite number"),
    ("choose-masks{sparsity=nan}", "choose-masks{sparsity=nan} is no finite number"),
    ("train{steps=3 lr=inf}", "train{lr=inf} is no finite number"),
    ("train{steps=3 lr=1e999}", "train{lr=inf} is no finite number"),
    ("train{steps=3 distill=kl{weight=nan}}", "kl{weight=nan} is no finite number"),
    (f"train{{steps={10**30}}}", f"train{{steps={10**30}}} is more than 10,000,000"),
    (f"train{{steps={'9' * 5000}}}",
     "pipeline text, column 13: a word of more than 1000 characters in 'train{steps=9"),
    ("a{b=" * 50_000, "pipeline text, column 83: nested deeper than 20 in 'a{b=a{b="),
    ("|".join(["insert-masks"] * 5000), "pipeline text, column 13013: more than 1000 passes in "),
    ("insert-masks | " * 100_000,
     "a pipeline text of 1,500,000 characters is too long; at most 1,000,000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), PIPELINES)
def test_pipelines_that_cannot_be_meant(text, sentence, cli, tmp_path):
    said = refused(["run", "--model", "nowhere", "--pipeline", text, "--out", "OUT"], cli, tmp_path)
    assert said.startswith(sentence)
    assert len(said) < 500


WRITERS = [
    [*RUN, "--json"], [*EVAL, "--json"], [*BENCH, "--json"], [*GENERATE, "--json"],
]  # fmt: skip


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: words[0])
def test_figures_that_cannot_be_written(words, cli, tmp_path, monkeypatch):
    away, folder = tmp_path / "no" / "x.json", tmp_path / "there"
    assert refused([*words, away], cli, tmp_path) == (
        f"--json '{away}': there is no folder '{away.parent}'; make it first"
    )
    folder.mkdir()
    assert refused([*words, folder], cli, tmp_path) == f"--json '{folder}' is a folder; name a file"
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    assert refused([*words, folder / "x.json"], cli, tmp_path) == (
        f"--json: nothing may be written into '{folder}'; choose another folder"
    )


FOLDERS = [
    ([*RUN[:-2]], "--out"), ([*RUN], "--dump"), ([*STREAM[:-2]], "--out"), (["demo"], "--out"),
    (["export", "nowhere", "--to", "onnx"], "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "option"), FOLDERS)
def test_folders_that_cannot_be_written(words, option, cli, tmp_path_factory, tmp_path):
    file = tmp_path_factory.mktemp("file") / "file"
    file.write_text("")
    for place in (file, file / "inside"):
        assert refused([*words, option, place], cli, tmp_path) == (
            f"{option} '{place}': '{file}' is a file; name a folder to write into"
        )
    assert file.read_text() == ""


def test_a_lack_of_memory_is_a_sentence():
    sentence = "there is not enough memory; use a smaller model, batch or length, or 'stream'"
    torch_says = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    for error in (MemoryError(), RuntimeError(torch_says), OSError(12, "Cannot allocate memory")):
        assert sentence_of(error) == sentence
    wrapped = SparsifyError("no model could be loaded")
    wrapped.__cause__ = MemoryError()
    assert sentence_of(wrapped) == sentence
    assert sentence_of(SparsifyError("else")) == "else"
    assert sentence_of(RuntimeError("a fault of ours")) is None


def test_a_limit_of_memory_ends_a_run_with_a_sentence(cli, model, tmp_path, monkeypatch):
    def none_left(*args, **kwargs):
        torch.empty(1 << 60)

    monkeypatch.setattr("sparsify.commands.run.traced", none_left)
    code, _, error = cli("run", "--model", model, "--pipeline", MASKS, "--out", tmp_path / "out")
    assert (code, error.startswith("error: there is not enough memory; ")) == (1, True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def narrow(model, tmp_path_factory):
    """A model with 64 positions in a table, and the tokenizer of 4096 ids; the same with 300 ids."""
    made = {}
    for name, vocabulary in (("positions", 4096), ("ids", 300)):
        made[name] = tmp_path_factory.mktemp(name) / "model"
        shutil.copytree(model, made[name])
        config = GPT2Config(
            n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=vocabulary,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with quiet():
            GPT2LMHeadModel(config).save_pretrained(made[name])
    return made


USERS = [
    ["eval", "MODEL", "--data", "TEXT"],
    ["run", "--model", "MODEL", "--data", "TEXT", "--pipeline", "insert-probes | calibrate",
     "--out", "OUT"],
    ["stream", "--model", "MODEL", "--data", "TEXT", "--masks", "choose-masks{sparsity=0.5}",
     "--out", "OUT"],
]  # fmt: skip


@pytest.mark.parametrize("words", USERS, ids=lambda words: words[0])
def test_text_is_held_against_the_model(words, narrow, text, cli, tmp_path):
    def said(name, length):
        given = {"MODEL": narrow[name], "TEXT": text}
        line = [given.get(word, word) for word in words]
        return refused([*line, "--length", length], cli, tmp_path)

    assert said("positions", 128) == (
        f"the sequences of '{text}' of 128 tokens are too long for the model, which has 64 positions"
    )
    assert said("ids", 64).startswith(f"the sequences of '{text}' hold the id 40")
    assert said("ids", 64).endswith(
        "but the model has a vocabulary of 300; the tokenizer is another model's"
    )


def test_tokens_to_time_are_held_against_the_model(narrow, cli, tmp_path):
    place = narrow["positions"]
    words = ["bench", place, "--against", place, "--tokens", "1,128"]
    assert refused(words, cli, tmp_path) == (
        "sequences of 128 tokens are too long for the model, which has 64 positions"
    )


def test_the_options_on_what_may_be_loaded(model, text, cli, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(model, place)
    from safetensors.torch import load_file, save_file

    held = load_file(place / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, place / "model.safetensors", metadata={"format": "pt"})
    words = ["eval", place, "--data", text, "--length", "32", "--limit", "2"]
    code, _, error = cli(*words)
    assert code == 1
    assert error.endswith("or give allow_partial=True (--allow-partial)\n")
    assert cli(*words, "--allow-partial")[0] == 0
    (place / "adapter_config.json").write_text("{}")
    assert "give merge_adapter=True (--merge-adapter)" in cli(*words)[2]
