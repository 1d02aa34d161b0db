"""The variant of a program with a key/value cache."""
