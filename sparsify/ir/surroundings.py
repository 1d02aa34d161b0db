"""What stands beside a model's weights and goes where its program goes: defaults, settings of other tools."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers import PreTrainedModel

from sparsify.errors import DataError
from sparsify.files import read_json

_MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_WEIGHTS = ("*.safetensors", "*.bin")


def generation_defaults(model: PreTrainedModel) -> dict[str, Any]:
    """What a model's generation config says other than the library; nothing for one that writes no text."""
    config = getattr(model, "generation_config", None)
    said: dict[str, Any] = config.to_diff_dict() if config is not None else {}
    return said


def tool_files(model: PreTrainedModel) -> dict[str, str]:
    """The text of the files by which sentence-transformers puts modules around a model, by path.

    They are looked for in the folder the model was loaded from. There are none where a module has weights
    of its own, which would stay behind.
    """
    folder = Path(model.name_or_path or "")
    if not model.name_or_path or not (folder / _MODULES).is_file():
        return {}
    modules = read_json(folder / _MODULES)
    if not isinstance(modules, list):
        return {}
    said = [PurePosixPath(str(module.get("path", ""))) for module in modules]
    within = [path for path in said if path.parts]  # the model itself has no folder of its own
    if not all(_inside(str(path)) for path in within):
        return {}
    if any(any((folder / path).glob(kind)) for path in within for kind in _WEIGHTS):
        return {}
    wanted = (_MODULES, *_SETTINGS, *(str(path / "config.json") for path in within))
    return {
        path: (folder / path).read_text(encoding="utf-8")
        for path in wanted
        if (folder / path).is_file()
    }


def checked_files(files: Mapping[str, str]) -> dict[str, str]:
    """The files that a stored program names; DataError for one that would lie outside its folder."""
    for path in files:
        if not _inside(path):
            raise DataError(
                f"a stored program names the file '{path}', which lies in no model's folder"
            )
    return dict(files)


def _inside(path: str) -> bool:
    """Whether a relative path stays where it starts, on every system."""
    read = PureWindowsPath(path)
    return not read.anchor and ".." not in read.parts
