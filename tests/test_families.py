"""The short form of `make zoo`: families that between them meet every rule, held against the tracked table.

Each is built small, traced and compared with its model; its axes are masked, removed and compared; 2:4
weights are packed. What the table of `docs/families.md` says must come out: neither it nor a rule goes stale.
"""

import json
from pathlib import Path

import pytest
import zoo
from zoo_models import families, small_model

from sparsify.ir.trace.trace import trace

TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "zoo.json"
# What each brings that those before it do not, and that `tests/test_zoo.py` does not have.
FAMILIES = {
    "falcon": "one KV head for all, attention and feed-forward side by side",
    "bloom": "positions as slopes, queries, keys and values in one weight",
    "deberta-v2": "scores from relative positions",
    "doge": "values of a KV group that another linear reads too",
    "gpt_oss": "sinks in attention, experts with biases and halves that alternate",
    "deepseek_v3": "keys and values of one latent, experts in groups",
    "llama4_text": "experts by batched products",
    "granitemoe": "experts whose rows are sorted",
    "gemma4_text": "embeddings for each layer, shared keys",
    "mamba2": "a scan, a convolution with a state",
    "lfm2": "short convolutions among attention",
    "qwen3_next": "a gated delta rule, two kinds of layers",
    "zamba2": "one block that several layers share",
    "modernbert": "windows, a feed-forward without a bias",
    "albert": "one layer many times",
    "bart": "an encoder and a decoder",
    "whisper": "sounds, convolutions before the encoder",
    "wav2vec2": "raw sounds, a weight that is normed",
    "clip": "two towers",
    "dinov3_vit": "pictures with registers and rotations",
    "convnext": "convolutions by channel",
    "resnet": "convolutions with batch norm",
    "hunyuan_v1_moe": "a single expert",
}
STEPS = (*zoo.KINDS, "2:4")


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_what_the_table_says(family, table):
    model = small_model(family, dict(families())[family])
    program = trace(model, copy=True)
    for step in STEPS:
        said = zoo.answer(zoo.step_of(step, program))
        assert said.split(" ")[0] == table[family][step].split(" ")[0], f"{step}: {said}"


def test_nothing_in_the_table_is_wrong(table):
    """Every family is right or refused in a sentence."""
    told = {(f, s): row[s] for f, row in table.items() for s in zoo.STEPS if s in row}
    assert len({family for family, _ in told}) > 300
    bad = {place: said for place, said in told.items() if said.startswith(("wrong", "fault"))}
    assert not bad


def test_what_is_wrong_is_told():
    """The comparisons of the sweep find a program that is another one."""
    program = trace(small_model("bert", "AutoModelForMaskedLM"), copy=True)
    wanted = zoo.outputs(program)
    assert zoo.answer(lambda: zoo.same(zoo.outputs(program), wanted, "it")) == "yes"
    moved = [wanted[0] * 1.001, *wanted[1:]]
    assert zoo.answer(lambda: zoo.same(moved, wanted, "it")).startswith("wrong: it: differs by")
    assert zoo.answer(lambda: 1 / 0).startswith("fault: ZeroDivisionError")
