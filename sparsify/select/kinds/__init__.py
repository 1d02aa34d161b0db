"""What can be masked, chosen and removed: one object a kind, one kind a file."""
