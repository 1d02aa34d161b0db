"""Packed matrices of experts: the same outputs in torch and ONNX Runtime, fewer bytes, one node an expert."""

import onnx
import pytest
import torch
from zoo_models import small_model

from sparsify.describe.cost import cost
from sparsify.describe.count import count
from sparsify.describe.of_program import facts_of
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.ops.packed_experts import block_experts, nm_experts
from sparsify.ir.storage.folder import load
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import effective_weight, out_in, products
from sparsify.ir.views.packed import block_weights, packed_linears, unblocked_weight
from sparsify.runtime.session import onnxruntime_session, run_session

TASK = "AutoModelForCausalLM"
# Stored `[experts, out, in]`, `[experts, in, out]`, and multiplied by all tokens.
FAMILIES = ("mixtral", "gpt_oss", "llama4_text")
SPARSE = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
ROUNDED = "insert-quantizers{values=%s group=32} | choose-scales"
WAYS = {
    "float32": (f"{SPARSE} | pack-nm", "NMLinear", 1e-5),
    "int8": (f"{SPARSE} | {ROUNDED % 'int8'} | pack-nm{{values=int8}}", "NMLinear", 0.05),
    "int4": (f"{SPARSE} | {ROUNDED % 'int4'} | pack-nm{{values=int4}}", "NMLinear", 0.05),
    "dense int8": (f"{ROUNDED % 'int8'} | pack-dense", "MatMulNBits", 0.05),
    "dense int4": (f"{ROUNDED % 'int4'} | pack-dense", "MatMulNBits", 0.05),
}


def program_of(family, text=None):
    program = trace(small_model(family, TASK), copy=True)
    return program if text is None else parse(text).run(program, Context())


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("family", "way"),
    [
        *(("mixtral", way) for way in WAYS),
        *((family, way) for family in FAMILIES[1:] for way in ("int4", "dense int8")),
    ],
)
def test_packed_experts_compute_what_they_did(family, way, tmp_path):
    text, kind, allowed = WAYS[way]
    before, _, packing = text.rpartition(" | ")
    program = program_of(family, before)
    wanted = program.run()[0]
    parse(packing).run(program, Context())
    assert relative(program.run()[0], wanted) < allowed
    ops = {nm_experts, block_experts}
    nodes = [node for node in program.graph.nodes if node.target in ops]
    assert len(nodes) == len({node.name for node in nodes}) >= 2
    export(program, tmp_path, ["onnx", "safetensors"])
    back = load(tmp_path / "safetensors")
    assert torch.equal(back.run()[0], program.run()[0])
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    experts = [
        n.input[1] for n in model.graph.node if n.op_type == kind and "experts" in n.input[1]
    ]
    assert len(set(experts)) == len(experts)
    assert {name.rpartition(".")[2] for name in experts} == {"0", "1", "2", "3"}
    assert "Expert" not in {node.op_type for node in model.graph.node}
    stored = {one.name for one in model.graph.initializer}
    assert stored.issuperset(experts)


@pytest.mark.parametrize("way", ["int4", "dense int8"])
def test_an_expert_without_tokens_multiplies_nothing(way, tmp_path):
    program = program_of("mixtral", WAYS[way][0])
    export(program, tmp_path, ["onnx"])
    session = onnxruntime_session(tmp_path / "onnx" / "model.onnx")
    for length in (1, 2, 11):
        ids = torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(length))
        inputs = program.complete({"input_ids": ids})
        feeds = {name: value.numpy() for name, value in inputs.items()}
        (logits,) = run_session(session, feeds).values()
        assert relative(torch.from_numpy(logits), program.run({"input_ids": ids})[0]) < 0.05


@pytest.mark.parametrize("way", ["float32", "dense int8"])
def test_packed_experts_pass_gradients_to_what_comes_before(way):
    text, _, _ = WAYS[way]
    before, _, packing = text.rpartition(" | ")
    program = program_of("mixtral", before)

    def gradient():
        table = program.tensor("model.embed_tokens.weight")
        table.requires_grad_(True)
        outputs = program.module(**program.complete(program.sample))
        (found,) = torch.autograd.grad(outputs[0].square().mean(), [table])
        return found

    wanted = gradient()
    parse(packing).run(program, Context())
    assert relative(gradient(), wanted) < (1e-4 if way == "float32" else 0.05)


def test_facts_count_the_matrices_of_experts():
    program = program_of("mixtral", f"{SPARSE} | pack-nm")
    dense = program_of("mixtral", SPARSE)
    packed, plain = facts_of(program), facts_of(dense)
    of_experts = [weight for weight in packed.weights if "experts" in weight.path]
    assert all(weight.packed and weight.pattern == "2:4" for weight in of_experts)
    shapes = {weight.path: weight.shape for weight in plain.weights}
    assert all(weight.shape == shapes[weight.path] for weight in of_experts)
    assert packed.zeros == plain.zeros
    bytes_before = {weight.path: weight.bytes for weight in plain.weights}
    wide = [weight for weight in of_experts if weight.shape[-1] == 64]  # no padding of its rows
    assert wide
    for weight in wide:  # half of the values, and where they stand
        assert 0.5 < weight.bytes / bytes_before[weight.path] < 0.6


@pytest.mark.parametrize("way", ["float32", "dense int8"])
def test_a_packed_mixture_costs_what_it_did(way):
    text, _, _ = WAYS[way]
    before, _, packing = text.rpartition(" | ")
    program = program_of("mixtral", before)
    dense, found = cost(program), cost(parse(packing).run(program, Context()))
    assert len(found.experts) == len(dense.experts) == 2
    for own, was in zip(found.experts, dense.experts, strict=True):
        assert (own.size, own.chosen, own.parameters) == (was.size, was.chosen, was.parameters)
        assert own.bytes < was.bytes
    assert (found.parameters, found.active) == (dense.parameters, dense.active)
    sizes, were = count(program), count(program_of("mixtral", before))
    assert (sizes.parameters, sizes.dense_multiply_adds) == (were.parameters, were.multiply_adds)
    assert (sizes.multiply_adds < were.multiply_adds) == (way == "float32")


def test_blocks_of_experts_come_back_as_they_were_rounded():
    rounded = program_of("gpt_oss", ROUNDED % "int8")
    views = products(rounded)
    weights = {v.weight: out_in(v, effective_weight(rounded, v)) for v in views}
    program = parse("pack-dense").run(rounded, Context())
    views = [view for view in block_weights(program) if view.stacked]
    assert len(views) == 4
    for view in views:
        path = view.codes.removesuffix("_blocks")
        assert torch.equal(unblocked_weight(program, view), weights[path])


def test_what_has_no_zeros_is_refused_by_the_expert_and_its_row():
    program = program_of("mixtral", SPARSE)
    path = next(path for path, _ in program.tensors() if path.endswith("1.mlp.experts.down_proj"))
    with torch.no_grad():
        program.tensor(path)[2, 5, 8:12] = 1
    with pytest.raises(OptionError, match=r"expert 2, row 5, columns 8 to 11 hold 4 nonzeros"):
        parse("pack-nm").run(program, Context())
    assert not packed_linears(program)


def test_experts_decode_packed(tmp_path):
    program = program_of("mixtral", WAYS["float32"][0])
    export(program, tmp_path, ["onnx-decode"])
    model = onnx.load(next((tmp_path / "onnx-decode").glob("*.onnx")))
    names = {n.input[1] for n in model.graph.node if n.op_type == "NMLinear"}
    assert sum("experts" in name for name in names) == 2 * 2 * 4
