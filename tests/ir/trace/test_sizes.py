"""Sizes that a model's code bounds: followed as far as it does the same, said, and refused beyond."""

import logging

import pytest
import torch
from torch import nn
from transformers import MptConfig, MptForCausalLM

from sparsify.engine.export import export
from sparsify.errors import DataError, SparsifyError
from sparsify.ir.facts.admission import Admission, admission_in, admission_of_program
from sparsify.ir.storage.folder import load, save
from sparsify.ir.trace.trace import trace
from sparsify.runtime.generate import load_onnx

DIMS = {"x": {0: "batch", 1: "length"}}


class Takes(nn.Module):
    """`x [batch, length, 4]`, by code that asks for the length in some way."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(4, 4), way

    def forward(self, x):
        return getattr(self, self.way)(self.linear(x))

    def top(self, y):
        """`min(2048, length) <= length`, which always holds and is not seen to."""
        return y.transpose(1, 2).topk(min(2048, y.shape[1]), dim=-1).values

    def block(self, y):
        """Blocks of 40, of which there is one up to there."""
        size = min(40, y.shape[1])
        return y[:, :size] + (y[:, size:].sum(1, keepdim=True) if y.shape[1] > size else 0)

    def table(self, y):
        """Cut from 64 rows: at 64 nothing is cut, which comes to the same."""
        rows = torch.arange(64.0)[:, None]
        return y + (rows if y.shape[1] == 64 else rows[: y.shape[1]])

    def loop(self, y):
        state = torch.zeros_like(y[:, 0])
        for step in range(y.shape[1]):
            state = torch.tanh(state + y[:, step])
        return state


def traced(way, longest=64):
    model = Takes(way).eval()
    model.config = type("Config", (), {"max_position_embeddings": longest})()
    return model, trace(model, {"x": torch.randn(2, 9, 4)}, DIMS)


def follows(model, program, length, batch=3):
    x = torch.randn(batch, length, 4)
    with torch.no_grad():
        torch.testing.assert_close(program.run({"x": x})[0], model(x))


def test_what_always_holds_bounds_nothing():
    model, program = traced("top", longest=4096)
    assert program.limits == {}
    for length in (2, 9, 300, 2047, 2048, 2049, 4096):
        follows(model, program, length)


def test_what_holds_up_to_a_size_is_said_and_refused_beyond(tmp_path):
    model, program = traced("block", longest=4096)
    assert program.limits == {"length": (0, 40)}
    for length in (2, 39, 40):
        follows(model, program, length)
    assert admission_of_program(program) == Admission(None, 40, fixed=True)
    save(program, tmp_path / "saved")
    for one in (program, program.clone(), load(tmp_path / "saved")):
        with pytest.raises(SparsifyError, match="a length of 41 is not within 0 to 40"):
            one.run({"x": torch.randn(2, 41, 4)})


def test_the_end_of_a_table_is_taken():
    model, program = traced("table")
    assert program.limits == {}
    for length in (2, 63, 64):
        follows(model, program, length)


def test_a_size_that_code_counts_along_is_fixed(caplog):
    with caplog.at_level(logging.WARNING, "sparsify"):
        model, program = traced("loop")
    assert "Takes can be followed at one size of 'length' at a time, here 9" in caplog.text
    assert program.dynamic == {"x": {0: "batch"}}
    follows(model, program, 9)
    with pytest.raises(SparsifyError, match=r"takes x \[batch, 9, 4\], and was given \[2, 8, 4\]"):
        program.run({"x": torch.randn(2, 8, 4)})


def test_files_say_how_many_tokens_they_take(tmp_path):
    """MPT's table of slopes ends at `max_seq_len`; the file refuses what reaches beyond it."""
    config = MptConfig(d_model=32, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=60)
    program = trace(MptForCausalLM(config).eval())
    assert program.limits == {"length": (0, 63)}
    folder = export(program, tmp_path / "mpt", ["onnx-decode"])["onnx-decode"]
    model = load_onnx(folder)
    assert model.generate([[5, 6, 7]], tokens=61, stop=[]).ids.shape == (1, 64)
    with pytest.raises(DataError, match="of 64 tokens are too long for the model, which has 63"):
        model.generate([[5, 6, 7]], tokens=62)
    assert "beyond 63 tokens" in (folder / "sparsify.json").read_text()
    assert admission_in(folder).positions == 63
