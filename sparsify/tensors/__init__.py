"""Pure tensor arithmetic: no graph, no module, no file; import the defining file, not this face."""
