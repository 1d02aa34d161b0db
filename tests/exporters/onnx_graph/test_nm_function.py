"""The function `sparsify.NMLinear` gives on a stock ONNX Runtime what its weight gives."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_graph.nm_function import function
from sparsify.tensors.packing.packed import Layout, dense, pack

PATTERNS = [(1, 4), (2, 4), *((n, 8) for n in range(1, 8))]
VALUES = [("float32", 0), ("int8", 32), ("int8", 96), ("int4", 32), ("int4", 64), ("int4", 128)]
SIZES = [(24, 128), (13, 37), (1, 131)]


def random_weight(layout):
    """A weight or codes with a scale for each group, and their bytes."""
    generator = torch.Generator().manual_seed(layout.n + layout.in_features)
    rows, columns = layout.out_features, layout.in_features
    groups = -(-columns // layout.m)
    order = torch.rand(rows, groups, layout.m, generator=generator).argsort(2)
    kept = (order < layout.n).flatten(1)[:, :columns]
    if layout.values == "float32":
        return pack(torch.randn(rows, columns, generator=generator) * kept, layout)
    limit = {"int8": 127, "int4": 7}[layout.values]
    codes = torch.randint(-limit, limit + 1, (rows, columns), generator=generator) * kept
    scales = torch.rand(rows, layout.groups, generator=generator).half()
    return pack(codes.to(torch.int8), layout, scales)


def node(layout, x, weight, bias, y):
    return helper.make_node(
        "NMLinear",
        [x, weight, bias],
        [y],
        domain="sparsify",
        n=layout.n,
        m=layout.m,
        in_features=layout.in_features,
        out_features=layout.out_features,
        group=layout.group,
        layout=1,
        values=layout.values,
    )


def model_of(layouts, packed, biases, opset=18):
    """A model with an input `x<i>` and an output `y<i>` for each layout."""
    nodes, weights, inputs, outputs = [], [], [], []
    for i, layout in enumerate(layouts):
        nodes.append(node(layout, f"x{i}", f"w{i}", f"b{i}", f"y{i}"))
        weights.append(numpy_helper.from_array(packed[i].numpy(), f"w{i}"))
        weights.append(numpy_helper.from_array(biases[i], f"b{i}"))
        inputs.append(
            helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["b", layout.in_features])
        )
        outputs.append(
            helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["b", layout.out_features])
        )
    graph = helper.make_graph(nodes, "linears", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("sparsify", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[function(opset)], ir_version=8 if opset < 19 else 10
    )


def run(model, feeds, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def rounded(x, group):
    """The input that an int8 or int4 weight sees, as docs/packed.md has it; in float64."""
    seen = np.zeros(x.shape)
    for start in range(0, x.shape[-1], group):
        part = x[..., start : start + group]
        largest = np.abs(part).max(-1, keepdims=True)
        factor = np.float32(127) / np.where(largest == 0, np.float32(1), largest)
        codes = np.rint(part * factor)
        assert codes.dtype == np.float32
        step = (largest / np.float32(127)).astype(np.float64)
        seen[..., start : start + group] = codes.astype(np.float64) * step
    return seen


def wanted(x, packed, bias, layout):
    weight = dense(packed, layout).double().numpy()
    return (rounded(x, layout.group) if layout.group else x.astype(np.float64)) @ weight.T + bias


def inputs(layout, shape=(5,)):
    generator = np.random.default_rng(layout.in_features)
    x = generator.standard_normal((*shape, layout.in_features)).astype(np.float32)
    x[0] = 0
    bias = generator.standard_normal(layout.out_features).astype(np.float32)
    return x, bias


def check(layouts, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, opset=18):
    packed = [random_weight(layout) for layout in layouts]
    given = [inputs(layout) for layout in layouts]
    model = model_of(layouts, packed, [bias for _, bias in given], opset)
    onnx.checker.check_model(model, full_check=True)
    found = run(model, {f"x{i}": x for i, (x, _) in enumerate(given)}, level)
    for layout, part, (x, bias), y in zip(layouts, packed, given, found, strict=True):
        right = wanted(x, part, bias, layout)
        assert y.shape == right.shape
        assert np.abs(y - right).max() <= 1e-6 * np.abs(right).max(), layout


@pytest.mark.parametrize(("values", "group"), VALUES)
def test_every_pattern_and_size_in_one_model(values, group):
    check([Layout(n, m, i, o, values, group) for n, m in PATTERNS for o, i in SIZES])


@pytest.mark.parametrize("opset", [20, 23, 24])
def test_later_operator_sets(opset):
    check([Layout(3, 8, 40, 9), Layout(2, 4, 40, 9, "int4", 32)], opset=opset)


def test_without_graph_optimisations():
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    check([Layout(2, 4, 40, 9), Layout(5, 8, 40, 9, "int8", 32)], level)


def decoded(layout, packed):
    """The weight `[out, in]` that the function computes with."""
    unit = np.eye(layout.in_features, dtype=np.float32)
    zero = np.zeros(layout.out_features, np.float32)
    return run(model_of([layout], [packed], [zero]), {"x0": unit})[0].T


def test_floats_of_every_size_come_back_to_the_last_bit():
    layout = Layout(7, 8, 256, 8)
    exponents = torch.arange(8 * 256).view(8, 256) % 255
    fractions = torch.randint(0, 2**23, (8, 256), generator=torch.Generator().manual_seed(0))
    signs = (torch.arange(256) % 3 == 0).long() << 31
    bits = (signs | exponents << 23 | fractions).to(torch.int64)
    weight = (bits - (bits >= 2**31) * 2**32).to(torch.int32).view(torch.float32)
    weight = weight * (torch.arange(256) % 8 != 5)
    assert weight.isfinite().all()
    assert ((weight != 0) & (weight.abs() < 2.0**-126)).any()
    found = decoded(layout, pack(weight, layout))
    assert np.array_equal(found, weight.numpy())


def test_scales_of_every_size_come_back_to_the_last_bit():
    layout = Layout(1, 8, 32, 2**16, "int8", 32)
    bits = torch.arange(2**16).to(torch.int16).view(2**16, 1)
    scales = bits.view(torch.float16)
    finite = scales.isfinite()
    scales = torch.where(finite, scales, torch.zeros_like(scales))
    codes = torch.zeros(2**16, 32, dtype=torch.int8)
    codes[:, 3] = 1
    unit = np.zeros((1, 32), np.float32)
    unit[0, 3] = 127  # its step is exactly 1
    model = model_of([layout], [pack(codes, layout, scales)], [np.zeros(2**16, np.float32)])
    found = run(model, {"x0": unit})[0]
    assert np.array_equal(found[0], scales[:, 0].float().numpy() * np.float32(127))
    assert int(finite.sum()) == 2**16 - 2 * 2**10


def test_infinite_weights():
    layout = Layout(2, 4, 32, 8)
    weight = torch.zeros(8, 32)
    weight[0, 1], weight[7, 31] = float("inf"), float("-inf")
    bias = np.zeros(8, np.float32)
    found = run(model_of([layout], [pack(weight, layout)], [bias]), {"x0": np.ones((1, 32), "f")})
    assert found[0][0].tolist() == [np.inf, 0, 0, 0, 0, 0, 0, -np.inf]


@pytest.mark.parametrize("shape", [(0,), (1,)])
@pytest.mark.parametrize(("values", "group"), [("float32", 0), ("int4", 32)])
def test_no_token_and_one(shape, values, group):
    layout = Layout(2, 4, 33, 9, values, group)
    packed, (_, bias) = random_weight(layout), inputs(layout)
    x = np.ones((*shape, 33), np.float32)
    (found,) = run(model_of([layout], [packed], [bias]), {"x0": x})
    assert found.shape == (*shape, 9)
    assert np.allclose(found, wanted(x, packed, bias, layout), rtol=1e-6, atol=1e-5)
