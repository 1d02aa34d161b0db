"""One counter of zeros: the report of a run, the figures of an export and the counts say the same."""

import pytest
import torch

from sparsify.describe.count import count, count_parameters, count_zeros
from sparsify.describe.of_program import facts_of
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.ir.views.linear import linears, products

MASKED = "insert-masks | choose-masks{pattern=2:4}"
PACKED = (
    f"{MASKED} | fold-masks | insert-quantizers{{values=int4 group=32}} | choose-scales{{by=mse}}"
)


def agreed(program):
    """The zeros of the linears and of all parameters, by every counter."""
    counts, facts = count(program), facts_of(program)
    assert count_zeros(program) == counts.linear_zeros == sum(w.zeros for w in facts.weights)
    assert counts.zeros == facts.zeros
    assert counts.parameters == facts.parameters == count_parameters(program)
    return counts.linear_zeros, counts.zeros


@pytest.mark.parametrize(
    "more",
    [
        "insert-lora{rank=2}",
        "insert-lora{rank=2} | insert-scales",
        "insert-quantizers{values=int4 group=32}",
    ],
)
def test_what_is_beside_or_in_a_weight_brings_no_zeros_of_its_own(more, traced):
    program = parse(MASKED).run(traced("block"), Context())
    masked = {v.weight for v in linears(program) if v.mask is not None}
    half = sum(program.tensor(path).numel() for path in masked) // 2
    assert agreed(program) == (half, half)
    report = Report()
    if "quantizers" in more:
        more += " | choose-scales{by=absmax}"
    parse(more).run(program, Context(), report=report)
    linear, every = agreed(program)
    assert linear == every == report.rows[-1].zeros
    if "quantizers" not in more:  # which round some to zero
        assert linear == half


@pytest.mark.parametrize("more", ["insert-adapters{ratio=0.3}", "insert-slorb{k=4}"])
def test_branches_beside_a_weight_are_linears_and_counted_by_all(more, traced):
    program = parse(f"{MASKED} | {more}").run(traced("block"), Context())
    linear, every = agreed(program)
    assert linear == every


@pytest.mark.parametrize(
    "text",
    [
        f"{PACKED} | pack-nm{{values=int4}}",
        "insert-quantizers{values=int4 group=32 ends=true} | choose-scales{by=mse} | pack-dense",
    ],
)
def test_packed_weights_and_tables(text, traced):
    agreed(parse(text).run(traced("block"), Context()))


def test_experts_count(traced):
    program = traced("routed")
    experts = next(v for v in products(program) if program.tensor(v.weight).dim() == 3)
    with torch.no_grad():
        program.tensor(experts.weight)[0].zero_()
    size = program.tensor(experts.weight)[0].numel()
    assert agreed(program) == (size, size)
