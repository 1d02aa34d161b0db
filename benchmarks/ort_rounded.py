"""What ONNX Runtime's own tools make of a dense model: int8 and int4 weights of its `MatMul` nodes.

A product whose weight is transposed in the graph, as that of a tied head, stays float32 in both.
"""

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

# Importing these tools turns on the notes of every package.
logging.getLogger().setLevel(logging.ERROR)


def dynamic_int8(dense: Path, folder: Path) -> Path:
    """int8 with one scale for each output; inputs are rounded tensor by tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    quantize_dynamic(
        dense, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
    )
    return path


def blocks_int4(dense: Path, folder: Path, block: int = 128) -> Path:
    """int4 with one scale for each output and block of inputs; inputs are rounded to int8 by block."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    quantizer = MatMulNBitsQuantizer(
        onnx.load(dense),
        bits=4,
        block_size=block,
        is_symmetric=True,
        accuracy_level=4,
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), False)
    return path
