"""The intermediate representation: programs, how to read, edit, print and check them."""
