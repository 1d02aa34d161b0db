"""Programs on disk: written, and held against what we write before anything is built."""
