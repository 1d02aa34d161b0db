"""Files beside an exported model, for the tools that read it."""
