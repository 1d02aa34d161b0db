"""Byte layouts of packed weights, and the arithmetic that reads them."""
