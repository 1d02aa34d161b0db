"""`generate` and `eval` on a folder with a cache."""

import json

import pytest
import torch
from rich.console import Console
from transformers import GPT2Config

from sparsify.commands.run import show_notes
from sparsify.pretrained.load import load_model
from sparsify.runtime.generate import load_onnx


def test_a_prompt_goes_on(model, text, cli, tmp_path):
    assert cli("export", model, "--to", "onnx-decode", "--out", tmp_path)[0] == 0
    report = tmp_path / "made.json"
    prompt = "The function"
    words = ("--prompt", prompt, "--tokens", 12, "--threads", 1, "--json", report)
    code, out, _ = cli("generate", tmp_path, *words)
    assert code == 0
    made = json.loads(report.read_text())
    assert made["new tokens"] == 12
    assert made["tokens per second"] > 0
    assert made["text"].startswith(prompt)
    assert "".join(made["text"].split()) in "".join(out.split())
    dense, tokenizer = load_model(str(model))
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    wanted = dense.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    found = load_onnx(tmp_path, threads=1).generate(prompt, tokens=12, stop=-1)
    assert torch.equal(found.ids, wanted)

    code, out, _ = cli("eval", tmp_path, "--data", text, "--limit", 4, "--json", report)
    assert code == 0
    (row,) = json.loads(report.read_text())
    code, out, _ = cli("eval", model, "--data", text, "--limit", 4, "--json", report)
    assert row["perplexity"] == pytest.approx(json.loads(report.read_text())[0]["perplexity"])

    # The same folder with the positions of a table: what would run over them is refused first.
    config = GPT2Config(n_positions=64, architectures=["GPT2LMHeadModel"]).to_dict()
    (tmp_path / "onnx-decode" / "config.json").write_text(json.dumps(config))
    code, _, error = cli("generate", tmp_path, "--prompt", prompt, "--tokens", 100)
    sentence = "a prompt and its continuation of 101 tokens are too long for the model"
    assert (code, error) == (1, f"error: {sentence}, which has 64 positions\n")


def test_what_an_export_notes_is_printed(capsys, tmp_path):
    show_notes(tmp_path, Console())
    (tmp_path / "sparsify.json").write_text('{"notes": ["one [b]thing[/b]"]}')
    show_notes(tmp_path, Console())
    assert capsys.readouterr().out == f"{tmp_path.name}: one [b]thing[/b]\n"


def test_kernels_for_a_folder_without_a_packed_model(cli, tmp_path):
    code, _, err = cli("kernels", tmp_path)
    assert code == 1
    assert "holds no packed model.onnx" in err


def test_a_folder_without_a_model(cli, tmp_path):
    code, _, err = cli("generate", tmp_path, "--prompt", "a")
    assert code == 1
    assert "export the model to onnx-decode" in err
