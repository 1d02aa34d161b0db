"""Data, losses, schedules and the loop of the train pass."""
