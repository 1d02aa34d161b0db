"""Block influence against the hidden states of the model, and shapes that name layers."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.residual import blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import block_masks
from sparsify.select.influence import Span, block_influence

LAYERS = {"llama": "model.layers", "gpt2": "transformer.h"}


class Padded:
    """Sequences of which one ends in padding."""

    length = 12

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 4

    def batch(self, indices):
        batch = self.data.batch(indices)
        for row, index in enumerate(indices):
            if index == 1:
                batch["attention_mask"][row, 7:] = 0
        return batch


@pytest.mark.parametrize("family", LAYERS)
def test_influence_is_one_minus_the_mean_cosine_over_real_tokens(family, traced, build, text):
    data, model, program = Padded(text), build(family), traced(family)
    pairs = []
    for layer in model.get_submodule(LAYERS[family]):
        layer.register_forward_hook(
            lambda module, args, out: pairs.append(
                (args[0], out[0] if isinstance(out, tuple) else out)
            )
        )
    wanted = [0.0, 0.0]
    tokens = 0
    for index in range(4):
        pairs.clear()
        batch = {k: v for k, v in data.batch([index]).items() if k != "labels"}
        with torch.no_grad():
            model(**batch)
        kept = batch["attention_mask"][0].bool()
        tokens += int(kept.sum())
        for number, (x, y) in enumerate(pairs):
            wanted[number] += float(cosine_similarity(x[0], y[0], dim=-1)[kept].sum())
    spans = {str(n): Span(b.x, b.y) for n, b in enumerate(blocks(analyse(program), "layers"))}
    found = block_influence(program, spans, data, range(4), 3)
    assert list(found.values()) == pytest.approx([1 - c / tokens for c in wanted], abs=1e-4)


def test_the_layer_that_turns_the_stream_least_goes(traced, text):
    program = traced("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            program.tensor(f"model.layers.0.{name}.weight").mul_(1e-3)
    steps = "insert-masks{of=layers} | choose-masks{of=layers score=influence sparsity=0.5}"
    parse(steps).run(program, Context(data=text))
    assert [bool(program.tensor(m.path)) for m in block_masks(program, "layers")] == [False, True]


def test_a_shape_may_name_layers_too(traced, text):
    program = parse(
        "insert-probes | calibrate{samples=4} | insert-masks{of=layers,heads,channels} | "
        "choose-masks{of=layers,heads,channels score=activation to=shape{layers=1 heads=2 channels=40}} | "
        "remove-probes | prune-layers | prune-heads | prune-channels"
    ).run(traced("llama"), Context(data=text))
    assert len(blocks(analyse(program), "layers")) == 1
    sizes = {
        tuple(v.shape)
        for p, v in program.tensors()
        if p.endswith(("o_proj.weight", "down_proj.weight"))
    }
    assert sizes == {(64, 32), (64, 40)}


def test_refusals(traced):
    with pytest.raises(PipelineError, match="needs data"):
        parse("insert-masks{of=layers} | choose-masks{of=layers score=influence sparsity=0.5}").run(
            traced("llama")
        )
    with pytest.raises(
        OptionError, match="score=influence is not for heads; choose magnitude or taylor"
    ):
        parse("insert-masks{of=heads} | choose-masks{of=heads score=influence sparsity=0.5}").check(
            traced("llama"), Context()
        )
    with pytest.raises(OptionError, match="layers=3 cannot be kept of the 2 layers"):
        parse("insert-masks{of=layers} | choose-masks{of=layers to=shape{layers=3}}").check(
            traced("llama"), Context()
        )
