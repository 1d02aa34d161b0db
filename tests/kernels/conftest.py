"""Packed weights drawn at random, models of one node, and the library under every instruction set."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sparsify import native
from sparsify.tensors.packing.packed import Layout, pack
from sparsify.tensors.quantize import absmax_scales, round_weight

Model = onnx.ModelProto


@pytest.fixture(scope="session")
def library() -> Path:
    """The compiled library; tests that need it are left out where there is no compiler."""
    found = native.library()
    if found is None:
        compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
        assert not compilers, "the kernels are not built: make kernels"
        pytest.skip("no C++ compiler, no kernels")
    return found


@pytest.fixture
def use_isa(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Make the kernels run with one instruction set: a copy of the library chooses for itself."""

    def use(isa: str) -> None:
        copy = tmp_path / f"{isa}{library.suffix}"
        shutil.copyfile(library, copy)
        monkeypatch.setenv(native.ENVIRONMENT, str(copy))
        monkeypatch.setenv("SPARSIFY_ISA", isa)
        assert native.isa() == isa

    return use


@pytest.fixture(scope="session")
def draw() -> Callable[[Layout, int], Tensor]:
    """Packed bytes of a random weight."""

    def packed(layout: Layout, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        groups = -(-layout.in_features // layout.m)
        shape = (layout.out_features, groups, layout.m)
        order = torch.rand(shape, generator=generator).argsort(2)
        weight = torch.where(order < layout.n, torch.randn(shape, generator=generator), 0.0)
        weight = weight.flatten(1)[:, : layout.in_features].contiguous()
        if not layout.group:
            return pack(weight, layout)
        scales = absmax_scales(weight, layout.group, layout.bits)
        return pack(round_weight(weight, scales, layout.group, layout.bits), layout, scales)

    return packed


@pytest.fixture(scope="session")
def one_node() -> Callable[..., Model]:
    """A model of one node `fc1`: Y = NMLinear(X, W, B) with the attributes of a layout, some replaced."""

    def model(sizes: Layout, w: Any, b: Any = None, **attributes: Any) -> Model:
        stated = {
            "n": sizes.n,
            "m": sizes.m,
            "in_features": sizes.in_features,
            "out_features": sizes.out_features,
            "group": sizes.group,
            "layout": 1,
            "values": sizes.values,
        } | attributes
        stated = {key: value for key, value in stated.items() if value is not None}
        initializers = [numpy_helper.from_array(np.asarray(w), "W")] if w is not None else []
        if b is not None:
            initializers.append(numpy_helper.from_array(np.asarray(b), "B"))
        names = ["X", "W", "B"] if b is not None else ["X", "W"]
        node = helper.make_node("NMLinear", names, ["Y"], "fc1", domain="sparsify", **stated)
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, None)]
        if w is None:
            inputs.append(helper.make_tensor_value_info("W", TensorProto.UINT8, [None]))
        output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "one_node", inputs, [output], initializers)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("sparsify", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    return model


@pytest.fixture(scope="session")
def session(library: Path) -> Callable[..., onnxruntime.InferenceSession]:
    """An ONNX Runtime session of a model with the library."""

    def make(model: Model | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(os.fspath(library))
        text = model if isinstance(model, bytes) else model.SerializeToString()
        return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])

    return make
