"""Cut chosen axes out of a program: tensors, size constants, sizes known at run time."""
