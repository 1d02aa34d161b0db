"""The catalogue of output formats, one file each."""

from exporters.huggingface import Huggingface
from exporters.onnx import Onnx
from exporters.safetensors import Safetensors

ALL = (Safetensors, Onnx, Huggingface)
