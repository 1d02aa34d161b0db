"""Tensors as a safetensors file whose bytes follow from the tensors alone."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_LENGTH = 8  # bytes at the start of the file that say how long its header is
_METADATA = "__metadata__"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name; the same bytes every time.

    The library writes the metadata in the order of a hash table that is seeded anew in every process: it
    is put in order afterwards, which leaves the header as long as it was.
    """
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    if metadata is None or len(metadata) < 2:
        return
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length))
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # always: the same entries in another order
            file.seek(_LENGTH)
            file.write(text.ljust(length))
