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
from sparsify.pretrained.completeness import check_loaded, differences, shape_of_model
from sparsify.pretrained.converted import Bundle, bundles
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
        # The bundle of each tensor by the model's name for it, where the folder may have several for one.
        self.bundles: dict[str, Bundle] = {}

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

    def names_of(self, program: Program) -> dict[str, str]:
        """The name of each tensor of a program once the folder's are loaded, by path.

        A folder may hold a model with or without the name of its body in front, and matrices of experts one
        by one. Raises DataError for tensors that the folder lacks, holds in another shape, or has too many.
        """
        cls = class_named(program.source.model_class)
        model = None
        if cls is not None:
            model = shape_of_model(cls, config_of(cls, program.source.config))
            found = differences(model, self.shapes)
            check_loaded(cls.__name__, str(self.folder), found)
        shapes: dict[str, tuple[int, ...]] = {}
        for bundle in bundles(model, self.files):
            made = bundle.load(lambda key: torch.empty(self.shapes[key], device="meta"))
            self.bundles |= dict.fromkeys(made, bundle)
            shapes |= {name: tuple(value.shape) for name, value in made.items()}
        return self._found(program, shapes)

    def load(self, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """A tensor by its name in the model, and all that are made of the same tensors of the folder."""
        return self.bundles[name].load(lambda key: self.read(key, dtype))

    def stored(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in the model, as the folder has them; whole bundles alone can be stored."""
        found: dict[str, Tensor] = {}
        for bundle in {id(one): one for one in map(self.bundles.__getitem__, values)}.values():
            own = {name: value for name, value in values.items() if self.bundles[name] is bundle}
            found |= bundle.store(own)
        return found

    def _found(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        found = {}
        parameters = {path for path, _ in program.module.named_parameters()}
        other_names: dict[str, list[str]] = {}
        for alias, path in program.aliases.items():
            other_names.setdefault(path, []).append(alias)
        for path, tensor in program.tensors():
            names = (path, *other_names.get(path, ()))
            key = next((k for name in names for k in _spellings(name, shapes)), None)
            if key is not None:
                self._check_shape(key, shapes[key], tuple(tensor.shape))
                found[path] = key
            elif path in parameters:
                raise DataError(
                    f"'{self.folder}' holds no tensor '{path}'; load the model and save it again"
                )
        return found

    def _check_shape(self, key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise DataError(
                f"'{key}' is {list(shape)} in '{self.folder}', "
                f"where the config says {list(expected)}"
            )


def _spellings(name: str, known: Iterable[str]) -> Iterator[str]:
    body = name.partition(".")[2]
    yield from (k for k in (name, body) if k in known)
    yield from (k for k in known if k.endswith(f".{name}") and k.count(".") == name.count(".") + 1)


class Borrowed:
    """The tensors of a program that are in memory at the moment, each in its place; the rest are holes."""

    def __init__(
        self, program: Program, checkpoint: Checkpoint, dtype: torch.dtype, places: Places
    ) -> None:
        self.program, self.checkpoint, self.dtype, self.places = program, checkpoint, dtype, places
        self.names: Mapping[str, str] = checkpoint.names_of(program)
        self._paths = {name: path for path, name in self.names.items()}
        self.held: dict[str, Tensor] = {}
        buffers = [path for path, _ in program.module.named_buffers() if path in self.names]
        self.need(buffers)

    def need(self, paths: Iterable[str]) -> None:
        """Read those that are not in memory."""
        for path in paths:
            if path not in self.names or path in self.held:
                continue
            for name, value in self.checkpoint.load(self.names[path], self.dtype).items():
                other = self._paths.get(name)
                if other is not None and other not in self.held:
                    self.put(other, value.to(self.places.of(other)))

    def put(self, path: str, value: Tensor) -> None:
        """Give a tensor another value of its shape."""
        self.held[path] = self.program.tensor(path).data = value

    def stored(self, paths: Iterable[str]) -> dict[str, Tensor]:
        """Tensors that are in memory as the folder has them, by their names there."""
        return self.checkpoint.stored({self.names[path]: self.held[path] for path in paths})

    def release(self, paths: Iterable[str]) -> None:
        """Forget tensors; holes take their places."""
        for path in paths:
            if self.held.pop(path, None) is not None:
                place = self.program.tensor(path)
                place.data = hole_like(place)
