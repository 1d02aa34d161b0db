"""What can be said of a program without changing it."""
