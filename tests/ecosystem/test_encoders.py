"""Folders of an encoder in sentence-transformers and in Optimum: the features that the program gives."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import normalize

from exporters.huggingface import Huggingface
from exporters.onnx import Onnx
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.load import load_model, load_tokenizer, source_of
from tests.environments import answer

pytestmark = pytest.mark.ecosystem

PROGRAMS = Path(__file__).parent / "programs"
SENTENCES = ("The function returns a table.", "An index.", "Rows of a table are sorted by key.")
CHANNELS = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5} | prune-channels"
HEADS = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5} | prune-heads"
MODULES = ["Transformer", "Pooling", "Normalize"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder as sentence-transformers leaves it: the model, then a mean over tokens, then length 1."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = load_tokenizer(source_of("embedded"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{MODULES[i]}",
        }
        for i, path in enumerate(paths)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    )
    return folder


@pytest.fixture(scope="module")
def smaller(source, tmp_path_factory):
    """A program with fewer channels and heads, and its ONNX folder."""
    program = parse(f"{CHANNELS} | {HEADS}").run(traced(source))
    return program, write_checked(Onnx(), program, tmp_path_factory.mktemp("smaller"))


def traced(source):
    model, tokenizer = load_model(str(source))
    return trace(model, tokenizer=tokenizer)


def features(program):
    """Ids and mask `[sentence, token]`, features `[sentence, token, feature]`."""
    batch = program.tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"], program.run(program.complete(batch))[0]


def embeddings(program):
    _, mask, found = features(program)
    weights = mask[..., None].float()
    return normalize((found * weights).sum(1) / weights.sum(1), dim=1)


def check(said, program):
    assert said["modules"] == MODULES
    found, wanted = torch.tensor(said["embeddings"]), embeddings(program)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-5


def test_sentence_transformers_on_onnx_runtime(smaller, python):
    program, folder = smaller
    check(
        answer(python("sentences"), PROGRAMS / "in_sentences.py", "onnx", folder, *SENTENCES),
        program,
    )


def test_sentence_transformers_on_torch(source, python, tmp_path):
    program = parse(CHANNELS).run(traced(source))
    folder = write_checked(Huggingface(), program, tmp_path)
    check(
        answer(python("sentences"), PROGRAMS / "in_sentences.py", "torch", folder, *SENTENCES),
        program,
    )


def test_optimum(smaller, python):
    program, folder = smaller
    said = answer(python("optimum"), PROGRAMS / "in_optimum_features.py", folder, *SENTENCES)
    ids, mask, wanted = features(program)
    assert said["ids"] == ids.tolist()
    found = torch.tensor(said["features"])
    assert float((found - wanted)[mask.bool()].abs().max()) < 1e-5
