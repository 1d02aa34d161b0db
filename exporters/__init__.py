"""The catalogue of output formats, one file each."""

from exporters.onnx import Onnx

ALL = (Onnx,)
