"""One file for each thing that a pass may put into a program: how it is found, added and dropped."""
