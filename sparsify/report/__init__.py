"""One HTML page about a run or a model, with plots."""
