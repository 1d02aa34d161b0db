"""The grammar of pipelines, and options that print and parse themselves."""
