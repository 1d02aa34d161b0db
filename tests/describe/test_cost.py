"""What programs cost a token: experts read off graphs of several families, bytes of steps, sums by hand."""

import functools
import io
import json
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from rich.console import Console

import sparsify
from sparsify.commands.cost import show_cost
from sparsify.describe.cost import MEANING, Cost, Experts, cost
from sparsify.describe.facts import FILE, read_facts, write_facts
from sparsify.describe.of_program import facts_of
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, OptionError, SparsifyError
from sparsify.ir.decode.variant import decoder
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.trace.trace import trace
from sparsify.ir.trace.weightless import weightless
from sparsify.report.found import find
from sparsify.report.page import write_page

# Of the fixture `routed`: one layer of width 16, six experts of 24 channels in a gated block, two a token.
EXPERT = 3 * 16 * 24
SIZES = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip


def alternating():
    """A program of its own with two layers, in the second of which are four experts, two a token."""
    return _alternating((0,)).clone()


@functools.cache
def _alternating(dense_layers):
    config = transformers.Qwen3MoeConfig(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, head_dim=16,
        mlp_only_layers=list(dense_layers), **SIZES,
    )  # fmt: skip
    return trace(transformers.Qwen3MoeForCausalLM(config).eval())


def test_a_mixture_by_hand(traced):
    program = traced("routed")
    found = sparsify.cost(program, batch=2, length=10)
    assert found.experts == (Experts(6, 2, 6 * EXPERT, 4 * 6 * EXPERT),)
    assert found.parameters == sum(p.numel() for p in program.module.parameters())
    assert found.active == found.parameters - 4 * EXPERT
    assert found.attention == 2 * 4 * 10 * 10 * (4 + 4)
    assert found.multiply_adds == multiply_adds(program, 2, 10)
    weights = 2 * 16 * 16 + 2 * 16 * 8 + 6 * 16 + 2 * EXPERT + 16 * 300
    assert found.forward == weights + found.attention / 20
    assert found.training() == 3 * found.forward
    assert found.training(recomputing=True) == 4 * found.forward


def test_the_bytes_of_steps_by_hand(traced):
    found = cost(traced("routed"))
    table = 4 * 300 * 16
    whole = found.bytes - table - 4 * 6 * EXPERT
    assert found.whole_bytes == whole
    assert found.touched(1) == pytest.approx(whole + 4 * 16 + 4 * 2 * EXPERT)
    reached = 6 * (1 - (2 / 3) ** 16)
    assert found.touched(16) == pytest.approx(whole + 16 * 4 * 16 + 4 * reached * EXPERT)
    assert found.touched(2048) == pytest.approx(found.bytes)
    steps = found.steps()
    assert [step.tokens for step in steps] == [1, 16, 256, 2048]
    assert [step.experts for step in steps] == pytest.approx([2, reached, 6, 6], rel=1e-3)
    assert [step.multiply_adds for step in steps] == [n * found.forward for n in (1, 16, 256, 2048)]
    assert steps[-1].share == pytest.approx(1)


def test_a_dense_program_has_the_same_figures_and_no_experts(traced):
    program = traced("llama")
    found = cost(program)
    assert found.experts == ()
    assert found.active == found.parameters
    assert found.multiply_adds == multiply_adds(program, 1, 128)
    assert found.touched(300) == found.bytes
    assert found.touched(1) == found.bytes - 4 * 299 * 64
    assert {step.experts for step in found.steps()} == {0}


def test_a_table_that_is_the_head_too_is_read_whole(traced):
    found = cost(traced("block"), length=4)
    assert found.tables == ()
    assert found.touched(1) == found.bytes == found.whole_bytes


def test_inputs_without_a_length_cost_each(traced):
    program = traced("mlp")
    program.dynamic = {"x": {0: "batch"}}
    found = cost(program, batch=2, length=7)
    assert (found.length, found.tokens) == (0, 2)


def test_the_counter_agrees_with_the_study():
    """A forward of a mixture is `dense (1 + phi (K - 1) rho)`: phi mixed layers, rho feed-forward."""
    dense, mixed = cost(_alternating((0, 1)), length=64), cost(alternating(), length=64)
    assert (len(dense.experts), len(mixed.experts)) == (0, 1)
    rho = 2 * 3 * 64 * 256 / dense.forward
    assert mixed.forward == pytest.approx(dense.forward * (1 + 0.5 * (2 - 1) * rho), rel=0.005)
    assert mixed.forward > dense.forward * (1 + 0.5 * 0.9 * rho)
    assert mixed.active == dense.parameters + 3 * 64 * 256 + 4 * 64


def test_pruned_experts_are_gone(traced):
    text = "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5} | prune-experts"
    before = cost(traced("routed"))
    masked = parse(text.rpartition(" | ")[0]).run(traced("routed"), Context())
    assert cost(masked).experts == before.experts
    after = cost(parse(text).run(traced("routed"), Context()))
    assert after.experts == (Experts(3, 2, 3 * EXPERT, 4 * 3 * EXPERT),)
    assert after.active == before.active - 3 * 16
    assert after.forward == before.forward - 3 * 16
    assert after.touched(1) == pytest.approx(before.touched(1) - 4 * 3 * 16)


def test_merged_experts_are_counted_by_clusters(traced, text):
    program, steps = traced("routed"), "insert-probes{of=routers} | calibrate{samples=4}"
    steps += " | choose-clusters{experts=3} | remove-probes | merge-experts"
    found = cost(parse(steps).run(program, Context(data=text)))
    assert found.experts == (Experts(3, 2, 3 * EXPERT, 4 * 3 * EXPERT),)
    assert found.multiply_adds == cost(traced("routed")).multiply_adds


def test_packed_weights_count_as_they_lie():
    before = cost(alternating())
    text = "insert-masks{of=weights} | choose-masks{pattern=2:4} | fold-masks | pack-nm"
    program = parse(text).run(alternating(), Context())
    after = cost(program)
    assert after.parameters == before.parameters
    assert after.active == before.active
    ((before_packed, packed),) = zip(before.experts, after.experts, strict=True)
    assert packed == replace(before_packed, bytes=packed.bytes)
    # Half of the values, and where in their groups they stand.
    assert before_packed.bytes * (1 / 2 + 1 / 32) == packed.bytes
    assert after.multiply_adds < before.multiply_adds
    experts, table = after.experts[0].bytes, 4 * 300 * 64
    read = sum(t.nbytes for path, t in program.tensors()) - experts - table
    assert after.touched(1) == pytest.approx(read + experts / 2 + 4 * 64)
    assert after.touched(1) < before.touched(1) - 4 * 3 * 64 * 256 / 3


def test_tables_in_blocks_are_read_by_rows():
    rounded = "insert-quantizers{values=int4 group=32 ends=true} | choose-scales | pack-dense"
    found = cost(parse(rounded).run(alternating(), Context()))
    assert [table.size for table in found.tables] == [300]
    # Half a byte a value, and a float16 for 32 of them.
    assert found.tables[0].bytes == 300 * (64 // 2 + 2 * 64 // 32)
    ((dense, packed),) = zip(cost(alternating()).experts, found.experts, strict=True)
    assert packed == replace(dense, bytes=packed.bytes)
    assert dense.bytes * (1 / 2 + 2 / 32) / 4 == packed.bytes


FAMILIES = {
    "biases of experts": ("GptOss", {"num_local_experts": 6, "head_dim": 16}, 2, (256, 64)),
    "one that all tokens pass": (
        "Qwen2Moe",
        {"num_experts": 6, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        2,
        (),
    ),
    "chosen in groups": (
        "DeepseekV3",
        {
            "n_routed_experts": 6, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 24,
            "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
            "num_key_value_heads": 4,
        },
        1,
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_of_other_routers(name):
    family, sizes, layers, biases = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(
        **{**SIZES, "num_experts_per_tok": 2, "eos_token_id": 1, "pad_token_id": 0, **sizes}
    )
    found = cost(trace(getattr(transformers, f"{family}ForCausalLM")(config).eval()))
    inner = sizes.get("moe_intermediate_size", 256)
    held = 6 * (3 * 64 * inner + (2 * inner + 64 if biases else 0))
    assert found.experts == (Experts(6, 2, held, 4 * held),) * layers
    assert found.active == found.parameters - layers * held * 4 // 6
    assert found.attention > 0


def test_a_mixture_of_47_billion_without_its_weights():
    """One layer of the shapes of Mixtral 8x7B, whose 32 hold 46.7 billion parameters, 12.9 of them active."""
    make = transformers.MixtralForCausalLM
    model = weightless(make, transformers.MixtralConfig(num_hidden_layers=1), torch.bfloat16)
    ids = {"input_ids": torch.arange(12).reshape(2, 6)}
    program = trace(model, ids, {"input_ids": {0: "batch", 1: "length"}}, check=False)
    found, rest = cost(program), 2 * 32000 * 4096 + 4096
    assert rest + 32 * (found.parameters - rest) == 46_702_792_704
    assert rest + 32 * (found.active - rest) == 12_879_925_248
    assert found.experts[0].bytes == 2 * 8 * 3 * 4096 * 14336


def test_an_expert_that_is_alone_is_a_weight_like_others():
    config = transformers.MixtralConfig(**SIZES, num_local_experts=1, num_experts_per_tok=1)
    found = cost(trace(transformers.MixtralForCausalLM(config).eval()))
    assert found.experts == ()
    assert found.active == found.parameters


def test_rows_split_at_run_time_are_counted_and_not_costed():
    """Two layers of four experts for queries and outputs, and four of a block, each of them two a token."""
    config = transformers.JetMoeConfig(
        **{**SIZES, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0},
        num_local_experts=4, num_experts_per_tok=2, kv_channels=8,
    )  # fmt: skip
    program = trace(transformers.JetMoeForCausalLM(config).eval())
    done = multiply_adds(program, 1, 8)
    assert isinstance(done, int)
    heads = 2 * 8  # of the keys
    layer = 4 * 32 * 2 + 2 * 2 * 32 * heads + 2 * 32 * heads + 2 * 3 * 32 * 48
    attention = 2 * 8 * 8 * 4 * (8 + 8)
    assert done == 8 * (2 * layer + 32 * 300) + attention
    with pytest.raises(SparsifyError, match="rows are split by sizes known only at run time"):
        cost(program)
    assert facts_of(program).multiply_adds > 0


class Alone(torch.nn.Module):
    """Rows that go to experts by their place, not by a choice: `x [batch, length, 8]`."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x):
        rows = x.reshape(-1, 8)
        ends = torch.stack(
            [rows.new_zeros(()) + rows.shape[0] // 2, rows.new_zeros(()) + rows.shape[0]]
        )
        return torch.ops.transformers.grouped_mm_fallback(rows, self.experts, ends.int())


def test_experts_that_nothing_chooses_are_refused():
    module = Alone()
    program = trace(module, {"x": torch.randn(2, 4, 8)}, {"x": {0: "batch", 1: "length"}})
    with pytest.raises(SparsifyError, match="no top-k of the graph chooses"):
        cost(program)
    assert facts_of(program).cost is None


def test_a_program_with_a_cache_has_the_same_experts(traced):
    program = traced("routed")
    before, after = cost(program, 1, 8), cost(decoder(program), 1, 8)
    assert (after.experts, after.active) == (before.experts, before.active)
    # The inputs that vary are as long as the tokens: eight keys of the cache stand beside eight new ones.
    assert after.attention == 2 * before.attention
    assert after.multiply_adds - after.attention == before.multiply_adds - before.attention


def test_sizes_that_cannot_be(traced):
    program = traced("mlp")
    for sizes in ((0, 4), (1, 0)):
        with pytest.raises(OptionError, match="at least 1"):
            cost(program, *sizes)
    with pytest.raises(OptionError, match="at least 1 token, not 0"):
        cost(program).touched(0)


def test_a_page_and_figures_have_the_cost_of_a_mixture_alone(traced, tmp_path):
    facts = facts_of(traced("routed"))
    assert facts.cost == cost(traced("routed"), 1, facts.length)
    assert facts.cost.multiply_adds == facts.multiply_adds
    for name, figures in (("mixed", facts), ("dense", replace(facts, cost=None))):
        folder = tmp_path / name
        folder.mkdir()
        write_facts(figures, folder)
        assert read_facts(folder) == figures
        page = write_page(find(folder)).read_text(encoding="utf-8")
        assert ("Cost of a mixture" in page) == (name == "mixed")
        assert ("2 of 6, by 1 router" in page) == (name == "mixed")


@pytest.mark.parametrize(
    "damage",
    [{"parameters": "9"}, {"batch": 0}, {"experts": [{"size": 2}]}, {"more": 1}, {"tables": 3},
     {"experts": [{"size": 2, "chosen": 3, "parameters": 1, "bytes": 1}]},
     {"tables": [{"size": 0, "bytes": 1}]}],
    ids=str,
)  # fmt: skip
def test_a_damaged_cost_is_told(traced, tmp_path, damage):
    found = Cost(8, 8, 0, 1, 1, 8, (Experts(2, 1, 2, 8),))
    assert Cost.from_json(json.loads(json.dumps(asdict(found)))) == found
    write_facts(replace(facts_of(traced("mlp")), cost=found), tmp_path)
    about = json.loads((tmp_path / FILE).read_text())
    about["cost"].update(damage)
    (tmp_path / FILE).write_text(json.dumps(about))
    with pytest.raises(DataError, match="is damaged or not ours"):
        read_facts(tmp_path)


@pytest.mark.parametrize("name", ["routed", "llama"])
def test_what_is_printed_fits_and_claims_no_speed(traced, name):
    out = io.StringIO()
    show_cost(traced(name), Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert ("2 of 6, by 1 router" in out.getvalue()) == (name == "routed")
    headings = [line for line in lines if "multiply-adds" in line]
    assert all(("forward" in line) or ("training" in line) or line[0] != " " for line in headings)
    words = " ".join(MEANING)
    assert "neither is a time" in words
    assert "faster" not in out.getvalue()
