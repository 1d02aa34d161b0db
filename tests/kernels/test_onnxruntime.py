"""The operator inside ONNX Runtime: right for every shape of X; a wrong file or feed is a sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout

Session = Callable[..., onnxruntime.InferenceSession]
Model = Callable[..., onnx.ModelProto]
Draw = Callable[[Layout, int], Tensor]
LAYOUT = Layout(2, 4, 50, 19, "int4", 32)
TITLE = "NMLinear 'fc1' (2:4, 50 -> 19, int4, group 32): "


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def refused(session: Session, model: onnx.ModelProto) -> str:
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        session(model)
    return str(caught.value)


@pytest.mark.parametrize("values", [("float32", 0), ("int8", 96), ("int4", 32)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_any_leading_dimensions(
    values: tuple[str, int], threads: int, session: Session, one_node: Model, draw: Draw
) -> None:
    layout = Layout(2, 4, 50, 19, *values)
    packed = draw(layout, 1)
    for bias in (None, numbers(19)):
        made = session(one_node(layout, packed.numpy(), bias), threads)
        for shape in [(50,), (1, 50), (2, 3, 50), (40, 50), (0, 50), (2, 0, 3, 50)]:
            x = numbers(*shape)
            (y,) = made.run(None, {"X": x})
            assert y.shape == (*shape[:-1], 19)
            b = None if bias is None else torch.from_numpy(bias)
            expected = nm_linear_reference(torch.from_numpy(x), packed, b, layout).numpy()
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


ATTRIBUTES = [
    ({"n": 3}, "(3:4, 50 -> 19, int4, group 32): the pattern must be 1:4, 2:4 or N:8"),
    ({"n": 8, "m": 8}, "the pattern must be"),
    ({"n": 0}, "the pattern must be"),
    ({"m": 16}, "the pattern must be"),
    ({"m": 0}, "the pattern must be"),
    ({"n": -2}, "n cannot be -2"),
    ({"m": 2**63 - 1}, "m cannot be 9223372036854775807"),
    ({"in_features": 0}, "at least one row and one column"),
    ({"out_features": -1}, "out_features cannot be -1"),
    ({"in_features": 2**62}, "in_features cannot be 4611686018427387904"),
    ({"out_features": 2**24 + 1}, "at most 16777216"),
    ({"in_features": 2**24, "out_features": 2**24}, "these sizes need"),
    ({"in_features": 65}, "these sizes need"),
    ({"out_features": 25}, "these sizes need"),
    ({"group": 0}, "group must be 32, 64, 96 or 128"),
    ({"group": 48}, "group must be"),
    ({"group": -32}, "group cannot be -32"),
    ({"values": "float32"}, "group must be 0"),
    ({"values": "int2"}, "values must be float32, int8 or int4"),
    ({"values": "int4" * 1000}, "values must be float32, int8 or int4"),
    ({"values": None}, "values must be float32, int8 or int4"),
    ({"values": 4}, "values must be float32, int8 or int4"),
    ({"values": "int8"}, "these sizes need"),
    ({"layout": 2}, "packed layout 2, this library knows 1"),
    ({"layout": None}, "the integer attribute 'layout' is missing"),
    ({"n": None}, "the integer attribute 'n' is missing"),
    ({"out_features": None}, "the integer attribute 'out_features' is missing"),
    ({"group": 32.0}, "the integer attribute 'group' is missing"),
    ({"m": [4, 4]}, "the integer attribute 'm' is missing"),
]


@pytest.mark.parametrize(("change", "sentence"), ATTRIBUTES, ids=lambda v: str(v)[:40])
def test_wrong_attributes(
    change: dict[str, Any], sentence: str, session: Session, one_node: Model, draw: Draw
) -> None:
    said = refused(session, one_node(LAYOUT, draw(LAYOUT, 1).numpy(), **change))
    assert "NMLinear 'fc1'" in said
    assert sentence in said


def test_wrong_weights(session: Session, one_node: Model, draw: Draw) -> None:
    w = draw(LAYOUT, 1).numpy()
    need = f"these sizes need {len(w)}"
    infinite = np.where(np.arange(len(w)) == 1, 0x7C, w).astype(np.uint8)
    for wrong, sentence in [
        (w[:-1], f"the packed weight has {len(w) - 1} bytes, {need}"),
        (w[:0], f"the packed weight has 0 bytes, {need}"),
        (np.concatenate([w, w]), f"the packed weight has {2 * len(w)} bytes, {need}"),
        (w[None], "W must have one dimension, not 2"),
        (w[0], "W must have one dimension, not 0"),
        (infinite, "the packed weight is damaged: a scale is not a finite number"),
    ]:
        assert TITLE + sentence in refused(session, one_node(LAYOUT, wrong))
    assert "W must be a constant initializer" in refused(session, one_node(LAYOUT, None))
    assert "tensor(int8)" in refused(session, one_node(LAYOUT, w.view(np.int8)))


def test_wrong_bias(session: Session, one_node: Model, draw: Draw) -> None:
    w = draw(LAYOUT, 1).numpy()
    for wrong, sentence in [
        (numbers(18), "B must have the shape [19], it has rank 1 and begins with 18"),
        (numbers(1, 19), "B must have the shape [19], it has rank 2 and begins with 1"),
        (numbers(), "B must have the shape [19], it has rank 0"),
    ]:
        assert TITLE + sentence in refused(session, one_node(LAYOUT, w, wrong))
    assert "tensor(double)" in refused(session, one_node(LAYOUT, w, np.zeros(19)))


def test_wrong_activations(session: Session, one_node: Model, draw: Draw) -> None:
    made = session(one_node(LAYOUT, draw(LAYOUT, 1).numpy()))
    for x, sentence in [
        (numbers(3, 49), "the last dimension of X is 49, not 50"),
        (numbers(3, 0), "the last dimension of X is 0, not 50"),
        (numbers(), "X has no dimension, its last one must be 50"),
    ]:
        with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
            made.run(None, {"X": np.asarray(x)})
        assert TITLE + sentence in str(caught.value)
    (y,) = made.run(None, {"X": numbers(3, 50)})
    assert y.shape == (3, 19)


def test_a_bias_that_is_fed(session: Session, one_node: Model, draw: Draw) -> None:
    """B may come at run time; its shape is then checked at run time."""
    packed, b, x = draw(LAYOUT, 1), numbers(19), numbers(4, 50)
    model = one_node(LAYOUT, packed.numpy(), b)
    del model.graph.initializer[1]
    model.graph.input.append(onnx.helper.make_tensor_value_info("B", 1, [None]))
    made = session(model)
    expected = nm_linear_reference(torch.from_numpy(x), packed, torch.from_numpy(b), LAYOUT).numpy()
    np.testing.assert_allclose(made.run(None, {"X": x, "B": b})[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(Exception, match=r"B must have the shape \[19\], it has rank 1"):
        made.run(None, {"X": x, "B": b[:18]})


def test_many_nodes_and_sessions_share_one_library(
    session: Session, one_node: Model, draw: Draw
) -> None:
    layout = Layout(4, 8, 64, 64)
    models = [one_node(layout, draw(layout, seed).numpy()) for seed in range(3)]
    made = [session(model, threads) for model in models for threads in (1, 2)]
    x = numbers(5, 64)
    first = [one.run(None, {"X": x})[0] for one in made]
    for one, y in zip(reversed(made), reversed(first), strict=True):
        np.testing.assert_array_equal(one.run(None, {"X": x})[0], y)
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
