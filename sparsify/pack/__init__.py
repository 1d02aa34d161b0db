"""Weights into the byte layouts of the kernels, N:M and dense."""
