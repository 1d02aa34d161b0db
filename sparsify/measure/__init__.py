"""Counts, quality and latency of what was made."""
