"""insert-quantizers, choose-scales, remove-quantizers: one normal form, scales, training through them."""

import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError, SparsifyError
from sparsify.ir.axes.summary import rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import composed_weight, effective_weight, linears, out_in
from sparsify.ir.views.probe import probe_behind
from sparsify.tensors.quantize import dequantize, mse_scales, round_weight


def run(program, pipeline, data=None):
    return parse(pipeline).run(program, Context(data=data))


def quantized(program):
    return {view.weight: view for view in linears(program) if view.quantizer is not None}


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_the_effective_weight_is_what_the_grid_gives(name, traced):
    program = run(
        traced(name),
        "insert-masks | choose-masks{pattern=2:4} | insert-quantizers{values=int4 group=32} | "
        "choose-scales{by=mse}",
    )
    views = quantized(program)
    assert views
    for view in views.values():
        weight = out_in(view, composed_weight(program, view))
        scales = program.tensor(view.quantizer.scales)
        assert torch.equal(scales, mse_scales(weight, 32, 4))
        wanted = dequantize(round_weight(weight, scales, 32, 4), scales, 32)
        assert torch.equal(out_in(view, effective_weight(program, view)), wanted)
        assert bool(program.tensor(view.input_quantizer.on))


def test_the_program_computes_what_it_says(traced):
    program = run(traced("mlp"), "insert-quantizers{group=32} | choose-scales")
    up, down = (quantized(program)[f"{name}.weight"] for name in ("up", "down"))
    x, on = program.sample["x"], torch.tensor(True)
    norm, bias = program.tensor("norm.weight"), program.tensor("norm.bias")
    hidden = quantize_activations(torch.layer_norm(x, [8], norm, bias), on, 32)
    hidden = hidden @ effective_weight(program, up).t() + program.tensor("up.bias")
    hidden = quantize_activations(torch.nn.functional.gelu(hidden), on, 32)
    y = x + hidden @ effective_weight(program, down).t() + program.tensor("down.bias")
    wanted = y @ program.tensor("head.weight").t()
    assert torch.allclose(program.run()[0], wanted, atol=1e-5)


@pytest.mark.parametrize("by", ["absmax", "mse", "histogram"])
def test_finer_values_and_better_scales_lose_less(by, traced):
    wanted = traced("block").run()[0]
    errors = {}
    for values in ("int8", "int4"):
        pipeline = f"insert-quantizers{{values={values} group=32}} | choose-scales{{by={by}}}"
        found = run(traced("block"), pipeline).run()[0]
        errors[values] = float((found - wanted).norm() / wanted.norm())
    assert 0 < errors["int8"] < 0.1
    assert errors["int8"] < errors["int4"] < 1


def test_weights_alone_are_rounded_where_inputs_are_left_out(traced):
    program = run(traced("mlp"), "insert-quantizers{activations=false} | choose-scales")
    assert all(view.input_quantizer is None for view in quantized(program).values())
    assert "quantize_activations" not in to_text(program)
    program.run()


@pytest.mark.parametrize("name", ["mlp", "block"])
def test_every_order_of_insertion_gives_one_text(name, traced):
    steps = ["insert-masks", "insert-lora{rank=2}", "insert-quantizers{group=32}"]
    found = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        program = run(traced(name), " | ".join(steps[i] for i in order))
        view = next(iter(quantized(program).values()))
        assert view.operand is view.quantizer.node
        assert view.mask
        assert view.branch
        text = to_text(program)
        found.add(tuple(sorted(line.split("= ")[-1].split("(")[0] for line in text.splitlines())))
    assert len(found) == 1


def test_a_branch_folded_under_a_quantizer_moves_no_code(traced, text):
    program = run(
        traced("gpt2"),
        "insert-masks | choose-masks{pattern=2:4} | insert-lora{rank=4} | insert-quantizers{group=32} | "
        "choose-scales | train{steps=3 batch=4 lr=0.01 update=lora}",
        text,
    )
    before = {path: effective_weight(program, view) for path, view in quantized(program).items()}
    outputs = program.run()[0]
    run(program, "fold-lora | fold-masks")
    after = quantized(program)
    assert all(torch.equal(effective_weight(program, after[path]), before[path]) for path in after)
    assert torch.equal(program.run()[0], outputs)


def test_training_on_the_rounded_program_brings_it_nearer(traced, tokens):
    """Gradients pass both roundings: the distance to the dense program falls, its codes move."""
    context = Context(data=tokens, dense=traced("block"))
    start = "insert-quantizers{values=int4 group=32} | choose-scales"
    program = parse(start).run(traced("block"), context)
    before = {path: effective_weight(program, view) for path, view in quantized(program).items()}
    parse("train{steps=40 batch=8 lr=0.003 task=0.0 distill=kl}").run(program, context)
    losses = [row["loss"] for row in context.figures["train"]]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = quantized(program)
    assert all(not torch.equal(effective_weight(program, after[p]), before[p]) for p in after)


def test_a_shared_linear_has_one_set_of_scales():
    from sparsify.ir.trace.trace import trace

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.inner(torch.tanh(self.inner(x))) + x

    torch.manual_seed(0)
    program = trace(Twice(), {"x": torch.randn(2, 8)}, {"x": {0: "batch"}})
    before = to_text(program)
    run(program, "insert-quantizers | insert-masks | insert-lora{rank=2}")
    assert len([v for v in linears(program) if v.quantizer and v.mask and v.branch]) == 2
    assert sum(path.endswith("_scales") for path, _ in program.tensors()) == 1
    run(program, "fold-lora | fold-masks | remove-quantizers")
    assert to_text(program) == before


def test_probes_and_quantizers_pass_each_other_over(traced, tokens):
    first = run(traced("block"), "insert-probes | insert-quantizers{group=32} | calibrate", tokens)
    second = run(traced("block"), "insert-quantizers{group=32} | insert-probes | calibrate", tokens)
    for program in (first, second):
        views = quantized(program).values()
        assert all(view.input_quantizer and probe_behind(view.x) for view in views)
        run(program, "insert-masks | choose-masks{score=wanda pattern=2:4} | choose-scales", tokens)
    assert torch.equal(first.run()[0], second.run()[0])


def test_rounded_axes_are_pinned_with_the_reason(traced):
    program = run(traced("mlp"), "insert-quantizers{targets=down}")
    pins = {row.size: row.pins for row in rows(analyse(program))}
    assert pins["12"] == ("rounded in groups",)
    with pytest.raises(PipelineError, match="put it before insert-quantizers"):
        run(program, "insert-masks{of=channels}")


def test_a_rounded_program_is_stored_exactly(traced, tmp_path):
    program = run(traced("gpt2"), "insert-quantizers{values=int4 group=32} | choose-scales")
    found = load(save(program, tmp_path / "p"))
    assert to_text(found) == to_text(program)
    assert found.features == {"quantizers", "quantized"}
    assert torch.equal(found.run()[0], program.run()[0])


def test_nothing_is_exported_while_it_is_only_rounded(traced, tmp_path):
    from sparsify.engine.export import export
    from sparsify.errors import ExportError

    program = run(traced("mlp"), "insert-quantizers | choose-scales")
    with pytest.raises(ExportError) as caught:
        export(program, tmp_path, ["onnx"])
    assert str(caught.value) == (
        "onnx cannot hold quantizers; add pack-nm to the pipeline, or export to safetensors"
    )


@pytest.mark.parametrize(
    ("pipeline", "kind", "sentence"),
    [
        (
            "insert-quantizers{group=48}",
            OptionError,
            "pass 1 of 1, 'insert-quantizers{group=48}', group=48 cannot be packed; "
            "it is 32, 64, 96 or 128 columns",
        ),
        (
            "insert-masks{of=channels} | insert-quantizers",
            PipelineError,
            "pass 2 of 2, 'insert-quantizers', cannot run while the program has ['mask.channels']; "
            "put prune-channels before it",
        ),
        (
            "insert-quantizers | choose-scales | remove-quantizers",
            PipelineError,
            "pass 3 of 3, 'remove-quantizers', cannot run while the program has ['quantized']; the "
            "rounding was switched on by choose-scales, and outputs would move without it",
        ),
        (
            "insert-quantizers{targets=up} | choose-scales{targets=down}",
            OptionError,
            "pass 2 of 2, 'choose-scales{targets=down}': no target has a quantizer; widen the targets, "
            "or those of insert-quantizers",
        ),
        (
            "choose-scales",
            PipelineError,
            "pass 1 of 1, 'choose-scales', needs ['quantizers'], but at that point the program has []",
        ),
    ],
)
def test_refusals(pipeline, kind, sentence, traced):
    with pytest.raises(kind) as caught:
        run(traced("mlp"), pipeline)
    assert str(caught.value) == sentence


def test_a_tied_embedding_is_not_rounded(traced):
    with pytest.raises(OptionError, match=r"@head.weight is no weight of linears alone"):
        run(traced("block"), "insert-quantizers{targets=head}")


def test_weights_that_are_no_numbers_are_named(traced):
    program = run(traced("mlp"), "insert-quantizers")
    with torch.no_grad():
        program.tensor("down.weight")[1, 2] = float("nan")
    with pytest.raises(SparsifyError, match=r"@down.weight: .* 1 of 96 values that are NaN"):
        parse("choose-scales").passes[0].rewrite(program, Context())
