"""Rotary positions that a model has once for all rows of a batch."""

from collections import Counter

import onnx
import torch
import transformers

from exporters.onnx import FILE, Onnx
from sparsify.engine.export import write_checked
from sparsify.ir.trace.trace import trace
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def written(program, folder):
    """What reads the file, and the file's nodes."""
    folder = write_checked(Onnx(), program, folder)
    return Onnx().read_back(program, folder), onnx.load(folder / FILE).graph.node


def count(nodes):
    return Counter(node.op_type for node in nodes)


def test_a_model_without_places_rotates_every_row(tmp_path):
    """An encoder that takes no places has one row of angles, which the operator does not broadcast."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        **SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    program = trace(transformers.ModernBertForMaskedLM(config))
    assert "position_ids" not in program.sample
    read, nodes = written(program, tmp_path)
    assert count(nodes)["RotaryEmbedding"] == 6
    for shape in ((1, 5), (2, 13), (4, 9)):
        ids = torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(1))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        wanted, found = program.run(batch)[0], read(batch)[0]
        assert largest_difference([found], [wanted]) < 1e-5


def test_tables_of_angles_are_made_once_and_repeated_only_where_they_must_be(tmp_path):
    _, nodes = written(traced("llama"), tmp_path)
    kinds = count(nodes)
    assert (kinds["RotaryEmbedding"], kinds["Cos"], kinds["Sin"]) == (4, 1, 1)
    # What is expanded are masks and frequencies, no table: places come with a row for each sequence.
    made = {node.output[0]: node.op_type for node in nodes}
    tables = [
        name for node in nodes if node.op_type == "RotaryEmbedding" for name in node.input[1:]
    ]
    assert {made[name] for name in tables} == {"Cos", "Sin"}
