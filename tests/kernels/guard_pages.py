"""A program: products whose buffers end at a page that must not be touched; one step beyond kills it.

    python guard_pages.py LIBRARY SEED COUNT

Unlike a sanitizer's build this runs the very library that is installed. Packed bytes are random: any
content must be safe. Prints the instruction set and the number of products.
"""

import ctypes
import mmap
import random
import sys

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PATTERNS = [(1, 4), (2, 4), *((n, 8) for n in range(1, 8))]


class Sizes(ctypes.Structure):
    """The `sparsify_nm` of the C interface."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "m", "in_features", "out_features", "group", "values")
    ]


class Guarded:
    """Memory of exactly so many bytes between two pages that must not be touched."""

    def __init__(self, count: int, content: bytes, at_end: bool) -> None:
        inner = -(-max(count, 1) // PAGE) * PAGE
        self.size = inner + 2 * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.base = LIBC.mmap(None, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value)
        start = self.base + PAGE
        self.address = start + inner - count if at_end else start
        ctypes.memmove(self.address, content.ljust(count, b"\0"), count)
        for page in (self.base, start + inner):
            assert LIBC.mprotect(page, PAGE, 0) == 0

    def free(self) -> None:
        """Give the memory back."""
        LIBC.munmap(self.base, self.size)


def load(path: str) -> ctypes.CDLL:
    """The library, its functions declared."""
    library = ctypes.CDLL(path)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.sparsify_isa.restype = ctypes.c_char_p
    library.sparsify_nm_bytes.restype = ctypes.c_int64
    library.sparsify_nm_linear.argtypes = [
        address, address, size, address, address, size, address, ctypes.c_int, address, size,
    ]  # fmt: skip
    return library


def product(library: ctypes.CDLL, rng: random.Random, threads: int) -> None:
    """One product of random sizes, its buffers at the end of their pages and at the start."""
    n, m = rng.choice(PATTERNS)
    values = rng.randrange(3)
    group = rng.choice([32, 64, 96, 128]) if values else 0
    sizes = Sizes(n, m, rng.randint(1, 300), rng.randint(1, 70), group, values)
    tokens = rng.choice([1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100])
    count = library.sparsify_nm_bytes(ctypes.byref(sizes), None, 0)
    assert count > 0
    for at_end in (True, False):
        packed = Guarded(count, rng.randbytes(count), at_end)
        bias = Guarded(4 * sizes.out_features, b"", at_end)
        x_bytes = 4 * tokens * sizes.in_features
        x = Guarded(x_bytes, rng.randbytes(x_bytes), at_end)
        y = Guarded(4 * tokens * sizes.out_features, b"", at_end)
        failed = library.sparsify_nm_linear(
            ctypes.byref(sizes), packed.address, count, bias.address, x.address, tokens, y.address,
            threads, None, 0,
        )  # fmt: skip
        assert failed == 0
        for memory in (packed, bias, x, y):
            memory.free()


def main(path: str, seed: str, count: str) -> None:
    """Run `count` products."""
    library, rng = load(path), random.Random(int(seed))
    for number in range(int(count)):
        product(library, rng, threads=2 if number % 4 == 0 else 1)
    print(library.sparsify_isa().decode(), count)


if __name__ == "__main__":
    main(*sys.argv[1:])
