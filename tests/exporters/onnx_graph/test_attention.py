"""Attention with a cache as one node: the same numbers as plain operators, and what is left alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from exporters.onnx_graph.attention import fuse_attention
from sparsify.runtime.session import SHARED_CACHE

HEADS, GROUPS, SIZE = 4, 2, 8
NAMES = {
    "pk": "past_key_values.0.key",
    "pv": "past_key_values.0.value",
    "nk": "present.0.key",
    "nv": "present.0.value",
}
ROTATED = "QR = RotaryEmbedding(QT, cos, sin)  KR = RotaryEmbedding(KT, cos, sin)"
PLAIN = "QR = Identity(QT)  KR = Identity(KT)"
JOINED = "AT = Transpose<perm = [0, 2, 1, 3]>(A)  y = Reshape(AT, flat)"

SHIFTED = "AT = Transpose<perm = [0, 2, 1, 3]>(A)  Y = Reshape(AT, flat)  y = Add(Y, N)"
MEASURED = "L = Shape<start = 2, end = 3>(pk)  N = Cast<to = 1>(L)"
SUMMED = "N = ReduceSum<keepdims = 0>(pk)"


def model_of(rotation=ROTATED, after=JOINED, attention="", axis=2, y="[B, S, 32] y"):
    """Standard operators: heads are cut and turned, keys and values appended, attended, turned back."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 23]>
    graph (int64[B, S] input_ids, int64[B, T] attention_mask, float[B, S, 32] q, float[B, S, 16] k,
           float[B, S, 16] v, float[B, S, 4] cos, float[B, S, 4] sin, bool[B, 1, S, T] seen,
           float[B, 2, P, 8] pk, float[B, 2, P, 8] pv)
        => (float[B, 2, T, 8] nk, float[B, 2, T, 8] nv, float{y})
    <int64[4] cut = {{0, 0, -1, 8}}, int64[3] flat = {{0, 0, 32}}> {{
        QC = Reshape(q, cut)  KC = Reshape(k, cut)  VC = Reshape(v, cut)
        QT = Transpose<perm = [0, 2, 1, 3]>(QC)
        KT = Transpose<perm = [0, 2, 1, 3]>(KC)
        VT = Transpose<perm = [0, 2, 1, 3]>(VC)
        {rotation}
        nk = Concat<axis = {axis}>(pk, KR)
        nv = Concat<axis = {axis}>(pv, VT)
        A = Attention{attention}(QR, nk, nv, seen)
        {after}
    }}
    """
    proto = onnx.shape_inference.infer_shapes(parser.parse_model(text))
    known = {"QT": HEADS, "KT": GROUPS, "VT": GROUPS, "QR": HEADS, "KR": GROUPS, "A": HEADS}
    model = ir.serde.deserialize_model(proto)
    for node in model.graph:  # what torch.onnx states and inference does not find
        for value in node.outputs:
            if value.name in known:
                value.shape = ir.Shape(["B", known[value.name], "S", SIZE])
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = NAMES.get(value.name, value.name)
    return model


def inputs(batch, length, past, padded=0):
    draw, total = np.random.default_rng(0), past + length
    mask = np.ones((batch, total), np.int64)
    mask[0, :padded] = 0
    seen = np.tril(np.ones((length, total), bool), past)[None, None] & (mask[:, None, None] > 0)

    def floats(*shape):
        return draw.standard_normal(shape, dtype=np.float32)

    return {
        "input_ids": np.zeros((batch, length), np.int64),
        "attention_mask": mask,
        "q": floats(batch, length, 32),
        "k": floats(batch, length, 16),
        "v": floats(batch, length, 16),
        "cos": floats(batch, length, 4),
        "sin": floats(batch, length, 4),
        "seen": seen,
        "past_key_values.0.key": floats(batch, GROUPS, past, SIZE),
        "past_key_values.0.value": floats(batch, GROUPS, past, SIZE),
    }


def session_of(model):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(session, given):
    wanted = {entry.name for entry in session.get_inputs()}
    return session.run(None, {k: v for k, v in given.items() if k in wanted})


def kinds(model):
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


@pytest.mark.parametrize(
    ("rotation", "after", "y"),
    [
        (ROTATED, JOINED, "[B, S, 32] y"),
        (PLAIN, JOINED, "[B, S, 32] y"),
        (ROTATED, "y = Relu(A)", "[B, 4, S, 8] y"),
    ],
)
def test_the_numbers_stay(rotation, after, y):
    plain, fused = (session_of(model_of(rotation, after, y=y)), model_of(rotation, after, y=y))
    assert fuse_attention(fused) == 1
    assert "Attention" not in kinds(fused)
    assert "Concat" not in kinds(fused)
    assert fused.metadata_props[SHARED_CACHE] == "true"
    session = session_of(fused)
    assert [o.name for o in session.get_outputs()] == [o.name for o in plain.get_outputs()]
    # A prompt, a token after it, several tokens after it; padding on the left that is not all there is.
    for batch, length, past, padded in ((2, 5, 0, 0), (3, 1, 6, 2), (1, 4, 6, 2)):
        given = inputs(batch, length, past, padded)
        for a, b in zip(run(plain, given), run(session, given), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_rotation_before_turning():
    model = model_of()
    fuse_attention(model)
    assert kinds(model).count("Transpose") == kinds(model).count("Reshape") == 0


def test_one_buffer_is_past_and_present():
    model = model_of()
    fuse_attention(model)
    session, given = session_of(model), inputs(1, 1, 6)
    wanted = run(session_of(model_of()), given)
    binding, buffers = session.io_binding(), []
    for name in ("past_key_values.0.key", "past_key_values.0.value"):
        long = np.full((1, GROUPS, 20, SIZE), 7, np.float32)
        long[:, :, :6] = given.pop(name)
        buffers.append(ort.OrtValue.ortvalue_from_numpy(long))
        binding.bind_ortvalue_input(name, buffers[-1])
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffers[-1])
    known = {entry.name for entry in session.get_inputs()}
    for name, value in given.items():
        if name in known:
            binding.bind_cpu_input(name, value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.get_outputs()[2].numpy(), wanted[2], atol=2e-6)
    for buffer, present in zip(buffers, wanted, strict=False):
        np.testing.assert_allclose(buffer.numpy()[:, :, :7], present, atol=2e-6)
        assert (buffer.numpy()[:, :, 7:] == 7).all()


@pytest.mark.parametrize("change", ["causal", "axis", "no mask", "sizes", "reader"])
def test_other_forms_stay(change):
    model = model_of(
        after=f"{JOINED}  Z = Relu(nk)" if change == "reader" else JOINED,
        attention="<is_causal = 1>" if change == "causal" else "",
        axis=1 if change == "axis" else 2,
    )
    if change == "no mask":
        model.graph.inputs[1].name = "other"
    if change == "sizes":
        model.graph.inputs[-1].shape = ir.Shape(["B", GROUPS, "P", 6])
    before = kinds(model)
    assert fuse_attention(model) == 0
    assert kinds(model) == before
    assert SHARED_CACHE not in model.metadata_props


def test_a_cache_that_is_read_is_not_shared():
    """Its length is taken from the mask instead; what it holds is not."""
    for rotation, shared in ((MEASURED, True), (SUMMED, False)):
        model, plain = (model_of(f"{ROTATED} {rotation}", SHIFTED) for _ in range(2))
        assert fuse_attention(model) == 1
        assert (SHARED_CACHE in model.metadata_props) is shared
        given = inputs(1, 2, 5)
        wanted, found = run(session_of(plain), given), run(session_of(model), given)
        np.testing.assert_allclose(found[2], wanted[2], atol=2e-5)
