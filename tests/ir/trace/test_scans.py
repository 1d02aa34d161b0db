"""Scans that stand in for a kernel become one op: each form against the function of transformers itself."""

import copy
import re
import sys

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.axes.walk import analyse
from sparsify.ir.ops.decayed_mean import decayed_mean
from sparsify.ir.ops.state_scan import state_scan
from sparsify.ir.trace.scans import scans_as_ops
from sparsify.ir.trace.trace import trace
from tests.ir.stateful import MODELS, model, program

NAMES = {
    "mamba": "mamba_selective_scan",
    "mamba2": "mamba2_chunk_scan",
    "qwen3_next": "torch_chunk_gated_delta_rule",
    "rwkv": "rwkv_linear_attention",
}
BATCH, LENGTH = 2, 11


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _selective():
    x, dt, gate = (some(BATCH, 6, LENGTH, seed=i) for i in range(3))
    b, c = (some(BATCH, 4, LENGTH, seed=i) for i in (3, 4))
    options = {"D": some(6), "z": gate, "delta_bias": some(6, seed=5), "delta_softplus": True}
    return (x, dt, -some(6, 4).exp(), b, c), {**options, "return_last_state": True}


def _by_heads():
    x, dt = some(BATCH, LENGTH, 4, 6), some(BATCH, LENGTH, 4, seed=1)
    b, c = (some(BATCH, LENGTH, 2, 5, seed=i) for i in (2, 3))
    options = {"D": some(4), "dt_bias": some(4, seed=4), "dt_softplus": True, "chunk_size": 8}
    state = some(BATCH, 4, 6, 5, seed=5)
    limits = {"dt_limit": (0.1, 2.0), "initial_states": state, "return_final_states": True}
    return (x, dt, -some(4).exp(), b, c), {**options, **limits}


def _delta_rule():
    queries, keys = (some(BATCH, LENGTH, 2, 8, seed=i) for i in range(2))
    values, g = some(BATCH, LENGTH, 4, 6, seed=2), -some(BATCH, LENGTH, 4, seed=3).exp()
    beta, state = some(BATCH, LENGTH, 4, seed=4).sigmoid(), some(BATCH, 4, 8, 6, seed=5)
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return (queries, keys, values), {"g": g, "beta": beta, "initial_state": state, **options}


def _decayed():
    keys, values = (3 * some(BATCH, LENGTH, 6, seed=i) for i in range(2))
    state = [some(BATCH, 6, seed=2), some(BATCH, 6, seed=3).exp(), some(BATCH, 6, seed=4)]
    return (some(6, seed=5), some(6, seed=6), keys, values), {"state": state, "return_state": True}


CALLS = {"mamba": _selective, "mamba2": _by_heads, "qwen3_next": _delta_rule, "rwkv": _decayed}
SCANS = {"mamba": 2, "mamba2": 2, "rwkv": 3}


@pytest.mark.parametrize("name", NAMES)
def test_each_form_is_its_function(name):
    code = sys.modules[type(model(name)).__module__]
    args, kwargs = CALLS[name]()
    function = getattr(code, NAMES[name])
    wanted = function(*args, **kwargs)
    with scans_as_ops(model(name)):
        assert getattr(code, NAMES[name]) is not function
        found = getattr(code, NAMES[name])(*args, **kwargs)
    assert getattr(code, NAMES[name]) is function
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lfm2"])
def test_programs_hold_one_scan_for_a_layer_and_take_any_length(name):
    made, whole = program(name), model(name)
    target = decayed_mean if name == "rwkv" else state_scan
    scans = made.graph.find_nodes(op="call_function", target=target)
    assert len(scans) == SCANS.get(name, 1)
    for length in (2, 40):
        ids = torch.randint(1, 64, (3, length), generator=torch.Generator().manual_seed(length))
        found = made.run({"input_ids": ids})[0]
        wanted = whole(input_ids=ids, use_cache=False).logits
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_what_was_masked_is_what_is_removed():
    made = program("jamba")
    parse("insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.25}").run(made, Context())
    wanted = made.run()[0]
    parse("prune-hidden").run(made, Context())
    found = made.run()[0]
    assert made.tensor("lm_head.weight").shape == (64, 24)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_columns_of_a_state_stay():
    made = program("mamba")
    axes = analyse(made).tensors["backbone.layers.0.mixer.A_log"]
    assert any("runs over it" in pin for pin in axes[1].root().pins)


class Running(torch.nn.Module):
    """A loop over time that stands in for no kernel."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(4, 4)

    def forward(self, x):
        held = torch.zeros_like(x[:, 0])
        for place in range(x.shape[1]):
            held = torch.tanh(self.mix(held) + x[:, place])
        return held


def test_a_loop_of_another_kind_fixes_the_length_and_its_line_is_said(caplog):
    made = trace(Running(), {"x": some(2, 7, 4)}, {"x": {0: "batch", 1: "length"}})
    line = r"by line \d+ of test_scans\.py, in forward: 'for .* in range\(.*\):'"
    assert re.search(
        rf"one size of 'length' at a time, here 7 \({line}\); give inputs", caplog.text
    )
    assert made.dynamic == {"x": {0: "batch"}}


def test_a_model_that_scales_its_weights_on_its_first_run_goes_on_as_it_was():
    made = MODELS["rwkv"]().eval()
    ids = some(2, 9).abs().long()
    wanted = copy.deepcopy(made)(input_ids=ids, use_cache=False).logits
    traced = trace(made, copy=True)
    for _ in range(2):
        torch.testing.assert_close(made(input_ids=ids, use_cache=False).logits, wanted)
    torch.testing.assert_close(traced.run({"input_ids": ids})[0], wanted)
    made.train()  # scales them back; norms add their epsilon to larger numbers
    found = made(input_ids=ids, use_cache=False).logits
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_channels_of_a_fading_mean_go_with_their_decay():
    made = program("rwkv")
    masks = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}"
    parse(masks).run(made, Context())
    wanted = made.run()[0]
    parse("prune-channels").run(made, Context())
    found = made.run()[0]
    assert made.tensor("rwkv.blocks.1.attention.time_decay").shape == (16,)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
