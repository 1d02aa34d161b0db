"""The pass contract, pipelines as text, the registry door and reports."""
