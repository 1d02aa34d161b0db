"""split-linears: weights of low rank as factors, through every format, or a sentence."""

import pytest
import torch
from torch import nn

from sparsify.describe.count import count
from sparsify.describe.of_program import facts_of
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import ExportError, OptionError, PipelineError, SparsifyError
from sparsify.ir.decode.variant import decoder
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.features.factors import factored
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears, out_in
from sparsify.ir.views.packed import block_weights, packed_linears
from sparsify.tensors.precision import largest_difference

LOW = "choose-tensors{rank=6}"
ATTENTION = "choose-tensors{stack=attention rank=6}"
ROUND = "insert-quantizers{values=int4 group=32} | choose-scales{by=mse} | pack-dense"


def run(program, text, report=None, data=None):
    return parse(text).run(program, Context(data=data), report=report)


def by_weight(program):
    return {view.weight: view for view in linears(program)}


def moved(one, other):
    return largest_difference(one.run(), other.run())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_two_small_linears_compute_what_one_did(name, traced):
    program = run(traced(name), LOW)
    split = run(program.clone(), "split-linears")
    assert moved(program, split) <= 1e-5
    assert split.features == {"factors"}
    dense, small = by_weight(program), by_weight(split)
    assert len(split.plan["factors"]) == 4
    for weight, (first, last) in split.plan["factors"].items():
        a, b = split.tensor(first).detach(), split.tensor(last).detach()
        whole = out_in(dense[weight], program.tensor(weight)).detach()
        assert a.shape == (6, whole.shape[1])
        torch.testing.assert_close(b @ a, whole, rtol=1e-4, atol=1e-6)
        assert small[last].x is small[first].node
        assert not split.has(weight)
    assert sorted(item.weight for item in factored(split)) == sorted(split.plan["factors"])


def test_multiply_adds_and_bytes_are_told(traced):
    program, report = run(traced("llama"), LOW), Report()
    before, parameters = multiply_adds(program, 1, 1), count(program).parameters
    run(program, "split-linears", report)
    saved = 4 * (64 * 96 - 6 * (64 + 96))
    assert multiply_adds(program, 1, 1) == before - saved
    assert count(program).parameters == parameters - saved
    assert report.rows[-1].places == 4
    assert report.rows[-1].note == (
        f"4 weights split; {4 * 4 * 64 * 96:,} bytes -> {4 * 4 * 6 * 160:,} bytes, "
        f"{before:,} multiply-adds of a forward -> {before - saved:,}"
    )
    facts = facts_of(program)
    gone = [weight for weight in facts.weights if not weight.shape]
    assert {weight.path for weight in gone} == set(program.plan["factors"])


def test_a_stack_of_attention_shares_its_factors(traced):
    """`6 R d + 4 R^2` multiply-adds for four matrices, `2 R d + 4 R^2` numbers."""
    program = run(traced("opt"), f"{ATTENTION} | choose-tensors{{rank=6}}")
    whole, apart = run(program.clone(), "split-linears"), program.clone()
    run(apart, "split-linears{shared=false}")
    assert moved(program, whole) <= 1e-5
    assert moved(program, apart) <= 1e-5
    four, pair = 64 * 64, 64 * 96
    fell = [multiply_adds(program, 1, 1) - multiply_adds(p, 1, 1) for p in (whole, apart)]
    ffn = 2 * 2 * (pair - 6 * 160)
    assert fell[0] == ffn + 2 * (4 * four - 6 * 6 * 64 - 4 * 36)
    assert fell[1] == ffn + 2 * 4 * (four - 2 * 6 * 64)
    sizes = [count(p).parameters for p in (program, whole, apart)]
    assert sizes[0] - sizes[1] == ffn + 2 * (4 * four - 2 * 6 * 64 - 4 * 36)
    assert sizes[0] - sizes[2] == fell[1]
    first = [chain[0] for chain in whole.plan["factors"].values() if len(chain) == 3]
    assert len(first) == 8
    assert len(set(first)) == 2
    shared = [view for view in linears(whole) if view.weight == first[0]]
    assert len(shared) == 2  # one for queries, keys and values, one for the output


def test_a_stack_over_layers_is_stored_once(traced):
    program = run(traced("opt"), "choose-tensors{stack=attention scope=all rank=6} | split-linears")
    chains = list(program.plan["factors"].values())
    assert len(chains) == 8
    assert {chain[0] for chain in chains} == {chains[0][0]}
    assert {chain[2] for chain in chains} == {chains[0][2]}


def test_weights_that_moved_apart_are_split_apart(traced, text):
    """What the plan says of a stack is believed only where the weights still say it."""
    program = run(traced("opt"), ATTENTION)
    path = program.plan["stacks"][0][1]
    with torch.no_grad():
        program.tensor(path).copy_(program.tensor(path).roll(1, 1))
    before = program.run()
    run(program, "split-linears")
    assert {len(program.plan["factors"][p]) for p in program.plan["stacks"][0]} == {2}
    assert {len(program.plan["factors"][p]) for p in program.plan["stacks"][1]} == {3}
    assert largest_difference(before, program.run()) <= 1e-5


def test_fused_linears_of_low_rank_are_split_whole(traced):
    program = run(traced("gpt2"), f"{ATTENTION} | split-linears")
    sizes = {
        path: list(program.tensor(chain[-1]).shape)
        for path, chain in program.plan["factors"].items()
    }
    assert sizes["transformer.h.0.attn.c_attn.weight"] == [192, 6]


def test_nothing_of_a_low_rank_is_nothing_to_split(traced):
    with pytest.raises(
        OptionError, match="no target has a rank so low that its factors take fewer"
    ):
        run(traced("mlp"), "split-linears")
    with pytest.raises(
        OptionError, match="no target has a rank so low that its factors take fewer"
    ):
        run(traced("llama"), "choose-tensors{rank=39} | split-linears")
    assert len(run(traced("llama"), "choose-tensors{rank=38} | split-linears").plan["factors"]) == 4


def test_saved_and_loaded(traced, tmp_path):
    program = run(traced("opt"), f"{LOW} | {ATTENTION} | split-linears")
    save(program, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert to_text(loaded) == to_text(program)
    assert loaded.plan == program.plan
    assert all(torch.equal(a, b) for a, b in zip(program.run(), loaded.run(), strict=True))


def test_onnx_and_the_variant_with_a_cache(traced, tmp_path):
    """Dense factors in one file, factors in four bits in the other; both are read back and compared."""
    program = run(traced("opt"), f"{LOW} | {ATTENTION} | split-linears")
    assert decoder(program).plan["factors"] == program.plan["factors"]
    assert set(export(program, tmp_path, ["onnx", "safetensors"])) == {"onnx", "safetensors"}
    run(program, ROUND)
    made = decoder(program)
    assert not any("factor" in view.weight for view in linears(made))
    codes = {view.codes for view in block_weights(program)}
    assert {view.codes for view in block_weights(made)} == codes
    assert sum("_factor_" in path for path in codes) == 2 * 2 * 2 + 2 * (4 + 2)
    assert set(export(program, tmp_path, ["onnx-decode"])) == {"onnx-decode"}


def test_factors_are_weights_like_others(traced, text):
    """Pruned N:M and packed, or trained: what `*` means, they are part of."""
    steps = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
    program = run(traced("llama"), f"choose-tensors{{rank=8}} | split-linears | {steps} | pack-nm")
    packed = {view.weight.removesuffix("_packed") for view in packed_linears(program)}
    assert {path for chain in program.plan["factors"].values() for path in chain} <= packed
    assert decoder(program).features == {"factors", "packed"}
    program = run(traced("llama"), "choose-tensors{rank=8} | split-linears")
    paths = [path for chain in program.plan["factors"].values() for path in chain]
    before = {path: program.tensor(path).detach().clone() for path in paths}
    run(program, "train{steps=2 batch=2}", data=text)
    assert not any(torch.equal(program.tensor(path), before[path]) for path in paths)


def test_pruned_first_and_biases_kept(traced, text):
    """Heads and channels go before, with a bias for what they gave; the variant has both."""
    steps = (
        "insert-probes | calibrate{samples=6} | insert-masks{of=heads,channels} | "
        "choose-masks{of=heads,channels sparsity=0.5} | insert-bias | choose-bias | remove-probes | "
        "fold-bias | prune-heads | prune-channels | choose-tensors{rank=6} | split-linears"
    )
    program = run(traced("llama"), steps, data=text)
    assert all(item.bias is not None for item in factored(program) if "down" in item.weight)
    assert decoder(program).features == {"factors"}


@pytest.mark.parametrize("kind", ["heads", "channels", "layers", "hidden"])
def test_what_is_removed_is_removed_before(kind, traced):
    with pytest.raises(PipelineError) as caught:
        run(traced("llama"), f"{LOW} | split-linears | insert-masks{{of={kind}}}")
    assert str(caught.value).endswith(
        "cannot run while the program has ['factors']; put it before split-linears"
    )
    with pytest.raises(PipelineError, match="cannot run while the program has"):
        run(traced("llama"), f"{LOW} | insert-masks{{of={kind}}} | split-linears")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_rank_is_not_told_from_sixteen_bits(kind, traced):
    """Singular values of a hundredth of the largest are less than bfloat16 rounds by, and no zeros."""
    program = run(traced("llama"), LOW)
    program.module.to(kind)
    with pytest.raises(OptionError, match="whose rounding hides small singular values"):
        run(program, "split-linears")


def test_a_weight_that_is_no_number(traced):
    program = run(traced("llama"), LOW)
    path = next(name for name in by_weight(program) if "up_proj" in name)
    with torch.no_grad():
        program.tensor(path)[0, 0] = float("nan")
    with pytest.raises(SparsifyError, match=r"1 of \d+ values that are NaN or infinite"):
        run(program, "split-linears")


def test_hugging_face_has_no_word_for_factors(traced, tmp_path):
    program = run(traced("llama"), f"{LOW} | split-linears")
    with pytest.raises(ExportError) as caught:
        export(program, tmp_path, ["huggingface"])
    assert str(caught.value) == (
        "huggingface cannot hold factors; leave split-linears out of the pipeline, or export to safetensors"
    )


def test_a_weight_that_a_table_reads_too_stays_whole(traced):
    with pytest.raises(OptionError, match="is no weight of linears alone"):
        run(traced("block"), "split-linears{targets=head}")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight, alpha=0.5).tanh()


def test_a_product_that_the_model_scales_is_left():
    program = trace(Scaled(), {"x": torch.ones(2, 8)}, {"x": {0: "batch"}})
    with pytest.raises(OptionError, match="is in a product that the model scales"):
        run(program, "split-linears")
