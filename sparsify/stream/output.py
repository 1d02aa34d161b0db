"""A Hugging Face folder that is written one shard at a time."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sparsify.disk.files import new_file, read_mapping, write_json
from sparsify.disk.weights_file import write_tensors
from sparsify.pretrained.headers import INDEX
from sparsify.pretrained.origin import without_places

# Files of a folder that say what its weights are; the shards bring their own.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", INDEX)


class Shards:
    """Numbered safetensors in a folder of work, put where they belong at the end."""

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all; what stood under the number is replaced."""
        with new_file(self.work / _name(number)) as temporary:
            write_tensors(
                temporary,
                {key: value.contiguous() for key, value in tensors.items()},
                {"format": "pt"},
            )

    def keys(self) -> dict[str, Path]:
        """Which shard each tensor written so far lies in."""
        found = {}
        for path in sorted(self.work.glob("shard-*.safetensors")):
            with safe_open(path, framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), path))
        return found

    def gather(self, source: Path, out: Path, dtype: str) -> None:
        """Link the shards into `out`, write an index, and copy the other files of the source beside them."""
        keys = self.keys()
        paths = sorted(set(keys.values()))
        names = {
            p: f"model-{i + 1:05d}-of-{len(paths):05d}.safetensors" for i, p in enumerate(paths)
        }
        total = sum(path.stat().st_size for path in paths)
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, out / file.name)
        config = without_places(read_mapping(out / "config.json"))
        config.pop("torch_dtype", None)
        write_json(out / "config.json", {**config, "dtype": dtype})
        for path, name in names.items():
            # A link: after a kill in between, everything is still where it was looked for.
            os.link(path, out / name)
        weight_map = {key: names[path] for key, path in sorted(keys.items())}
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
