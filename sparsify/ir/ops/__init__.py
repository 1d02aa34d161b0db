"""The ops a graph may hold: ATen's by name, and one file for each of our own."""
