"""What stands beside a model's weights and goes where its program goes: defaults, settings of other tools."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers import PreTrainedModel

from sparsify.disk.files import read_json
from sparsify.errors import DataError

_MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_WEIGHTS = ("*.safetensors", "*.bin")


def generation_defaults(model: PreTrainedModel) -> dict[str, Any]:
    """What a model's generation config says other than the library; nothing for one that writes no text."""
    config = getattr(model, "generation_config", None)
    said: dict[str, Any] = config.to_diff_dict() if config is not None else {}
    return said


def ids_of(*values: Any) -> tuple[int, ...]:
    """Ids that are given as numbers, lists of them, or not at all, each once, in order."""
    found: dict[int, None] = {}
    for value in values:
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                found[int(item)] = None
    return tuple(found)


def tool_files(model: PreTrainedModel) -> dict[str, str]:
    """The text of the files by which sentence-transformers puts modules around a model, by path.

    They are looked for in the folder the model was loaded from. There are none where a module has weights
    of its own, which would stay behind.
    """
    folder = Path(model.name_or_path or "")
    if not model.name_or_path or not (folder / _MODULES).is_file():
        return {}
    modules = read_json(folder / _MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        return {}
    said = [PurePosixPath(str(module.get("path", ""))) for module in modules]
    within = [path for path in said if path.parts]  # the model itself has no folder of its own
    if not all(_inside(str(path)) for path in within):
        return {}
    if any(any((folder / path).glob(kind)) for path in within for kind in _WEIGHTS):
        return {}
    wanted = (_MODULES, *_SETTINGS, *(str(path / "config.json") for path in within))
    return {path: _text(folder / path) for path in wanted if (folder / path).is_file()}


def _text(path: Path) -> str:
    """A JSON file as it stands; DataError when it is none."""
    read_json(path)
    return path.read_text(encoding="utf-8")


def check_files(files: Any) -> None:
    """Refuse what a stored program names as files of other tools and is none of them; DataError.

    Only `tool_files` knows which there are: the list of modules, the settings beside it, and the config of
    each module in that list. Anything else could take the place of what an export writes.
    """
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise DataError("'source.files' is not a mapping from paths to texts")
    known = {_MODULES, *_SETTINGS, *(str(path / "config.json") for path in _listed(files))}
    for path, text in files.items():
        if path not in known:
            raise DataError(f"'source.files' names {path!r:.60}, which is no file of another tool")
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path!r:.60} of 'source.files' is not JSON: {error}") from error


def _listed(files: Mapping[str, str]) -> list[PurePosixPath]:
    """The folders of the modules that a stored list names, those inside the model's folder."""
    try:
        modules = json.loads(files.get(_MODULES, "[]"))
        paths = [PurePosixPath(module["path"]) for module in modules]
    except (ValueError, RecursionError, TypeError, KeyError):
        return []
    return [path for path in paths if path.parts and _inside(str(path))]


def _inside(path: str) -> bool:
    """Whether a relative path stays where it starts, on every system."""
    read = PureWindowsPath(path)
    return not read.anchor and ".." not in read.parts
