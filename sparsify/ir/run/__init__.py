"""The graph run piece by piece, or changed while it runs."""
