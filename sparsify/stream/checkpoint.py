"""The tensors of a Hugging Face folder, read one by one, and a program that borrows them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sparsify.errors import DataError
from sparsify.ir.program import Program
from sparsify.ir.trace.weightless import hole_like
from sparsify.pretrained.completeness import check_loaded, differences
from sparsify.pretrained.headers import headers_in
from sparsify.pretrained.load import class_named, config_of
from sparsify.stream.places import Places

_LOOKED_AT = 1 << 14  # bytes at either end of a tensor


class Checkpoint:
    """Where every tensor of a folder of safetensors lies; nothing is read before it is asked for.

    Raises DataError when the folder has no safetensors or one of its files is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = headers_in(folder)
        self.files = {key: header.file for key, header in found.items()}
        self.shapes = {key: header.shape for key, header in found.items()}

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        """A tensor, floating-point ones as `dtype`; DataError when it is not finite."""
        with safe_open(self.files[key], framework="pt") as opened:
            value: Tensor = opened.get_tensor(key)
        if not value.is_floating_point():
            return value
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"'{self.files[key]}' holds values that are not finite in '{key}'")
        return value.to(dtype)

    def fingerprint(self) -> str:
        """SHA-256 over the config and, of every tensor, its place, type, shape, first and last bytes.

        Reading all of a model that is larger than memory would take longer than pruning some of them.
        """
        seen = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(set(self.files.values())):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = file.read(size)
                seen.update(header)
                for key, about in json.loads(header).items():
                    start, end = about["data_offsets"] if key != "__metadata__" else (0, 0)
                    for place in {start, max(start, end - _LOOKED_AT)}:
                        file.seek(8 + size + place)
                        seen.update(file.read(min(_LOOKED_AT, end - start)))
        return seen.hexdigest()

    def keys_of(self, program: Program) -> dict[str, str]:
        """The key of each tensor of a program, by path.

        A folder may hold a model with or without the name of its body in front.
        Raises DataError for tensors that the folder lacks, holds in another shape, or has too many.
        """
        cls = class_named(program.source.model_class)
        if cls is not None:
            found = differences(cls, config_of(cls, program.source.config), self.shapes)
            check_loaded(cls.__name__, str(self.folder), found)
        return self._found(program)

    def _found(self, program: Program) -> dict[str, str]:
        found = {}
        parameters = {path for path, _ in program.module.named_parameters()}
        other_names: dict[str, list[str]] = {}
        for alias, path in program.aliases.items():
            other_names.setdefault(path, []).append(alias)
        for path, tensor in program.tensors():
            names = (path, *other_names.get(path, ()))
            key = next((k for name in names for k in self._spellings(name)), None)
            if key is not None:
                self._check_shape(key, tuple(tensor.shape))
                found[path] = key
            elif path in parameters:
                raise DataError(
                    f"'{self.folder}' holds no tensor '{path}'; load the model and save it again"
                )
        return found

    def _check_shape(self, key: str, expected: tuple[int, ...]) -> None:
        if self.shapes[key] != expected:
            raise DataError(
                f"'{key}' is {list(self.shapes[key])} in '{self.folder}', "
                f"where the config says {list(expected)}"
            )

    def _spellings(self, name: str) -> Iterator[str]:
        body = name.partition(".")[2]
        yield from (k for k in (name, body) if k in self.files)
        yield from (
            k for k in self.files if k.endswith(f".{name}") and k.count(".") == name.count(".") + 1
        )


class Borrowed:
    """The tensors of a program that are in memory at the moment, each in its place; the rest are holes."""

    def __init__(
        self, program: Program, checkpoint: Checkpoint, dtype: torch.dtype, places: Places
    ) -> None:
        self.program, self.checkpoint, self.dtype, self.places = program, checkpoint, dtype, places
        self.keys: Mapping[str, str] = checkpoint.keys_of(program)
        self.held: dict[str, Tensor] = {}
        buffers = [path for path, _ in program.module.named_buffers() if path in self.keys]
        self.need(buffers)

    def need(self, paths: Iterable[str]) -> None:
        """Read those that are not in memory."""
        for path in paths:
            if path in self.keys and path not in self.held:
                value = self.checkpoint.read(self.keys[path], self.dtype)
                self.put(path, value.to(self.places.of(path)))

    def put(self, path: str, value: Tensor) -> None:
        """Give a tensor another value of its shape."""
        self.held[path] = self.program.tensor(path).data = value

    def release(self, paths: Iterable[str]) -> None:
        """Forget tensors; holes take their places."""
        for path in paths:
            if self.held.pop(path, None) is not None:
                place = self.program.tensor(path)
                place.data = hole_like(place)
