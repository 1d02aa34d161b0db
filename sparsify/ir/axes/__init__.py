"""Coupled axes: which dimensions of which tensors shrink together, and how to shrink them."""
