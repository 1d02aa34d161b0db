"""What to keep: scores and choices for the weights and groups of a program."""
