"""Sessions for nm_linear.py: many linear layers of one kind, each with weights of its own.

Every layer reads the same input and writes an output of its own. The layers differ, or ONNX Runtime would
share what it prepacks and the weights would stay in the cache.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sparsify import native
from sparsify.tensors.packing.packed import Layout, pack
from sparsify.tensors.quantize import absmax_scales, round_weight

Array = NDArray[Any]
_TYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


@dataclass(frozen=True)
class Kind:
    """A way to multiply: `dense`, `dynamic` (int8), `blocks` (int4 or int8) or `packed`."""

    name: str
    family: str
    n: int = 0
    m: int = 0
    values: str = "float32"
    group: int = 0


@dataclass(frozen=True)
class Layer:
    """One node: its operator, attributes, weights, and the matrix `[out, in]` that they stand for."""

    operator: str
    domain: str
    attributes: dict[str, Any]
    weights: dict[str, Array]
    matrix: Array
    turn: dict[str, tuple[int, int]]  # weight -> axis and step that give the next layer another one

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(array.nbytes for array in self.weights.values())


def pruned(out: int, columns: int, n: int, m: int, seed: int) -> Array:
    """Normal weights; of every m columns the n largest stay."""
    weight = np.random.default_rng(seed).standard_normal((out, columns), dtype=np.float32) * 0.02
    if n == 0:
        return weight
    groups = weight.reshape(out, columns // m, m)
    small = np.argsort(np.abs(groups), axis=2)[:, :, : m - n]
    np.put_along_axis(groups, small, 0.0, axis=2)
    return weight


def layer(kind: Kind, out: int, columns: int) -> Layer:
    weight = pruned(out, columns, kind.n, kind.m, seed=0)
    return {"dense": _dense, "dynamic": _dynamic, "blocks": _blocks, "packed": _packed}[
        kind.family
    ](kind, weight)


def _dense(kind: Kind, weight: Array) -> Layer:
    stored = {"w": np.ascontiguousarray(weight.T)}
    return Layer("MatMul", "", {}, stored, weight, {"w": (1, 7)})


def _dynamic(kind: Kind, weight: Array) -> Layer:
    """DynamicQuantizeMatMul: one scale for each output, activations by tensor."""
    scale = np.abs(weight).max(axis=1) / 127
    codes = np.rint(weight / scale[:, None]).astype(np.int8)
    stored = {"w": np.ascontiguousarray(codes.T), "s": scale, "z": np.zeros(len(scale), np.int8)}
    turn = {"w": (1, 7), "s": (0, 7)}
    return Layer("DynamicQuantizeMatMul", "com.microsoft", {}, stored, weight, turn)


def _blocks(kind: Kind, weight: Array) -> Layer:
    """MatMulNBits, symmetric, activations in int8 (accuracy level 4)."""
    out, columns = weight.shape
    bits = 4 if kind.values == "int4" else 8
    middle = 2 ** (bits - 1)
    blocks = weight.reshape(out, columns // kind.group, kind.group)
    scale = np.abs(blocks).max(axis=2) / (middle - 1)
    codes = (np.rint(blocks / scale[:, :, None]) + middle).astype(np.uint8)
    if bits == 4:
        codes = codes[:, :, 0::2] | (codes[:, :, 1::2] << 4)
    attributes = {
        "K": columns,
        "N": out,
        "bits": bits,
        "block_size": kind.group,
        "accuracy_level": 4,
    }
    turn = {"w": (0, 7), "s": (0, 7)}
    stored = {"w": np.ascontiguousarray(codes), "s": scale.astype(np.float32)}
    return Layer("MatMulNBits", "com.microsoft", attributes, stored, weight, turn)


def _packed(kind: Kind, weight: Array) -> Layer:
    out, columns = weight.shape
    layout = Layout(kind.n, kind.m, columns, out, kind.values, kind.group)
    tensor, scales = torch.from_numpy(weight), None
    if kind.values != "float32":
        bits = 4 if kind.values == "int4" else 8
        scales = absmax_scales(tensor, kind.group, bits)
        tensor = round_weight(tensor, scales, kind.group, bits)
    packed = pack(tensor, layout, scales)
    attributes = {"n": kind.n, "m": kind.m, "in_features": columns, "out_features": out}
    attributes |= {"values": kind.values, "group": kind.group, "layout": 1}
    stored = {"w": packed.numpy()}
    turn = {"w": (0, layout.block_bytes)}
    return Layer("NMLinear", "sparsify", attributes, stored, weight, turn)


class Stack:
    """A session of as many layers as `streamed` bytes need, bound to inputs and outputs of its own."""

    def __init__(self, kind: Kind, out: int, columns: int, streamed: float, threads: int) -> None:
        self.kind, self.out, self.columns = kind, out, columns
        self.layer = layer(kind, out, columns)
        self.layers = max(2, math.ceil(streamed / self.layer.nbytes))
        self.session = _session(self.layer, self.layers, out, columns, threads)
        self.binding = self.session.io_binding()

    def bind(self, x: Array) -> None:
        """Set the input `[tokens, in]` and fresh outputs."""
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.x = ort.OrtValue.ortvalue_from_numpy(x)
        self.binding.bind_ortvalue_input("x", self.x)
        shape = (len(x), self.out)
        self.outputs = [
            ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            for _ in range(self.layers)
        ]
        for number, value in enumerate(self.outputs):
            self.binding.bind_ortvalue_output(f"y{number}", value)

    def run(self) -> None:
        """Run all layers once."""
        self.session.run_with_iobinding(self.binding)

    def error(self) -> float:
        """Relative error of the first layer's last output against float64."""
        exact = self.x.numpy().astype(np.float64) @ self.layer.matrix.astype(np.float64).T
        found = self.outputs[0].numpy()
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _session(layer: Layer, layers: int, out: int, columns: int, threads: int) -> Any:
    graph = helper.make_graph([], "layers", [], [])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", columns]))
    contents: dict[str, bytes] = {}
    for number in range(layers):
        names = ["x"]
        for key, array in layer.weights.items():
            axis, step = layer.turn.get(key, (0, 0))
            other = np.ascontiguousarray(np.roll(array, step * number, axis=axis))
            names.append(f"{key}{number}")
            contents[names[-1]] = other.tobytes()
            graph.initializer.append(_external(names[-1], other))
        output = f"y{number}"
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["t", out]))
        graph.node.append(
            helper.make_node(
                layer.operator, names, [output], domain=layer.domain, **layer.attributes
            )
        )
    domains = [("", 17), ("com.microsoft", 1), ("sparsify", 1)]
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Several sessions take turns: threads of one that still wait for work would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(str(native.require_library()))
    names, blobs = list(contents), list(contents.values())
    options.add_external_initializers_from_files_in_memory(names, blobs, [len(b) for b in blobs])
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    blobs.clear()  # ONNX Runtime reads them until here and does not keep them alive
    return session


def _external(name: str, array: Array) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=_TYPES[array.dtype.name], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor
