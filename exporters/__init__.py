"""The catalogue of output formats, one file each."""

from exporters.huggingface import Huggingface
from exporters.onnx import Onnx
from exporters.onnx_decode import OnnxDecode
from exporters.safetensors import Safetensors

ALL = (Safetensors, Onnx, OnnxDecode, Huggingface)
