"""Files and folders that appear whole or not at all, hashed, and written by one at a time."""
