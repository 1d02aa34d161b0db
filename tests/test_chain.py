"""From choosing to the exported file, for every family: pruned models outside torch."""

import onnxruntime
import pytest
import torch
import transformers

from sparsify import Context, export, parse

MASKS = "insert-masks{of=heads,channels} | "
PRUNE = " | prune-heads | prune-channels"
UNEVEN = (
    "choose-masks{of=heads sparsity=0.4 scope=global} | "
    "choose-masks{of=channels sparsity=0.5 scope=global}"
)
EVEN = "insert-masks{of=channels targets=*%s*} | choose-masks{of=channels sparsity=0.5} | prune-channels"
# What the channels of a family's feed-forward blocks flow into.
READERS = {
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "bert": "layer.*.output",
    "bert-base": "layer.*.output",
}


def batch(rows, length):
    ids = torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, length - length // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def relative(one, two):
    return float((one - two).abs().max() / one.abs().max())


# The zoo exports every family; here one with KV groups, one with [in, out] weights and an encoder do.
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "bert"])
def test_uneven_layers_run_in_onnx(family, traced, tmp_path):
    program = parse(MASKS + UNEVEN + PRUNE).run(traced(family), Context())
    path = export(program, tmp_path, ["onnx"])["onnx"] / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, length in ((3, 17), (1, 5)):
        inputs = program.complete(batch(rows, length))
        found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        for one, two in zip(program.run(inputs), found, strict=True):
            assert relative(one, torch.from_numpy(two)) < 1e-5


def test_even_channels_load_in_the_stock_class(family, traced, tmp_path):
    pipeline = EVEN % READERS.get(family, "down_proj")
    program = parse(pipeline).run(traced(family), Context())
    folder = export(program, tmp_path, ["huggingface"])["huggingface"]
    model = getattr(transformers, program.source.model_class).from_pretrained(folder).eval()
    inputs = program.complete(batch(2, 11))
    with torch.no_grad():
        wanted = model(**inputs)
    for name, one in zip(program.source.outputs, program.run(inputs), strict=True):
        assert relative(wanted[name], one) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_even_heads_load_in_the_stock_class(name, traced, tmp_path):
    pipeline = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5} | prune-heads"
    program = parse(pipeline).run(traced(name), Context())
    folder = export(program, tmp_path, ["huggingface"])["huggingface"]
    model = getattr(transformers, program.source.model_class).from_pretrained(folder).eval()
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    inputs = program.complete(batch(2, 11))
    with torch.no_grad():
        assert relative(model(**inputs).logits, program.run(inputs)[0]) < 1e-5
