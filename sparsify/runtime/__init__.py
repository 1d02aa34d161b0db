"""Exported models on ONNX Runtime: sessions, caches, text."""
