"""A model becomes a program: exported, made functional, brought into canonical form, checked."""
