"""Parts of an ONNX graph that the converter does not write by itself."""
