"""Models larger than memory: pruned layer by layer, weights read and written as they are needed."""
