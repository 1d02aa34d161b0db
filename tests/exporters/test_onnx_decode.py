"""Generation on ONNX Runtime against the model's own, token for token."""

import onnx
import pytest
import torch

from exporters.onnx_decode import OnnxDecode
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, ExportError, OptionError
from sparsify.runtime.caches import GrowingCaches, SharedCaches, empty_caches
from sparsify.runtime.generate import FILE, load_onnx
from tests.ir.axes.families import FAMILIES
from tests.ir.axes.families import traced as family_traced

TOKENS = 40
PROMPT = torch.tensor([[9, 8, 3, 7, 5, 6], [0, 0, 0, 4, 11, 20], [0, 31, 32, 7, 44, 5]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
SMALLER = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels | insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
)
ADAPTED = (
    "insert-masks | choose-masks{pattern=2:4} | insert-adapters | choose-adapters{by=naive} | "
    "fold-masks | pack-nm"
)


def model_of(family, program):
    """The model of a family with a program's weights."""
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(program.tensor(program.aliases.get(name, name)))
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_writes_what_the_model_writes(family, tmp_path):
    program = family_traced(family)
    model = model_of(family, program)
    folder = write_checked(OnnxDecode(), program, tmp_path)
    nodes = [node.op_type for node in onnx.load(folder / FILE).graph.node]
    # Attention that the model spells out, with a cap on its scores, keeps plain operators.
    assert nodes.count("GroupQueryAttention") == (0 if family == "gemma2" else 2)
    found = load_onnx(folder, threads=1)
    assert isinstance(
        empty_caches(found.session, 1, 9), GrowingCaches if family == "gemma2" else SharedCaches
    )
    for ids, mask in ((PROMPT[:1], MASK[:1]), (PROMPT, MASK)):
        wanted = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        made = found.generate(ids, mask=mask, tokens=TOKENS)
        assert torch.equal(made.ids, wanted)
        assert len(made.token_seconds) == TOKENS - 1


@pytest.mark.parametrize("pipeline", [SMALLER, ADAPTED])
def test_a_pruned_and_packed_model_writes_what_its_program_writes(pipeline, tmp_path):
    program = parse(pipeline).run(family_traced("llama"))
    write_checked(OnnxDecode(), program, tmp_path)
    found = load_onnx(tmp_path, threads=1)
    ids = PROMPT[:1]
    for _ in range(TOKENS):
        ids = torch.cat([ids, program.run({"input_ids": ids})[0][:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(found.generate(PROMPT[:1], tokens=TOKENS, stop=[]).ids, ids)
    first = int(ids[0, 6])
    stopped = found.generate(PROMPT[:1], tokens=TOKENS, stop=first)
    assert stopped.ids.tolist() == [[*PROMPT[0].tolist(), first]]
    drawn = [found.generate(PROMPT[:1], tokens=9, temperature=5.0, seed=s).ids for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(OptionError, match="has no tokenizer; give token ids"):
        found.generate("text")
    with pytest.raises(OptionError, match="tokens must be at least 1"):
        found.generate(PROMPT, tokens=0)


def test_models_without_a_cache_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"does not generate; a cache is for .* export to onnx"):
        write_checked(OnnxDecode(), family_traced("bert"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"holds no model\.onnx; export the model to onnx-decode"):
        load_onnx(tmp_path)
