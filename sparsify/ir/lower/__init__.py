"""A program as a runtime that only infers wants it: one rewrite a file."""
