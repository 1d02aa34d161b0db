"""A small model folder with a tokenizer, a text to go with it, and the command line in this process."""

import contextlib
import io
import sys
from importlib import resources

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify.cli import main
from sparsify.pretrained.load import load_tokenizer
from sparsify.pretrained.quiet import quiet


@pytest.fixture(scope="session")
def embedded():
    return resources.files("sparsify") / "embedded"


@pytest.fixture(scope="session")
def model(tmp_path_factory, embedded):
    """A Llama of two layers with the embedded tokenizer, in a folder."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(str(embedded))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory, embedded):
    """Some ten thousand characters of plain text in a file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    whole = (embedded / "heldout.txt").read_text(encoding="utf-8")
    path.write_text(whole[:12000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cli():
    """Run a command line; gives the exit code, what it printed, and its errors."""

    def run(*words):
        printed, errors = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(sys, "argv", ["sparsify-fx", *map(str, words)])
            patch.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit) as ended:
                main()
        return ended.value.code, printed.getvalue(), errors.getvalue()

    return run
