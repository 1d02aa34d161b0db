"""Where a model comes from, as what is made of it may say: names and a licence, no paths of this machine."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import metadata_load
from transformers import PreTrainedModel

CARD, TAG = "README.md", "sparsify-fx"
LICENCE = ("license", "license_name", "license_link")
# Beside the entries of a card: the commit of a hub id, and what the file under `license_link` says.
BASE, REVISION, TERMS = "base_model", "revision", "license_text"
_PLACE = "_name_or_path"
_LONGEST = 1 << 20  # characters of a licence
# Files that no program reads: the name says that it is a licence, the suffix that it is text.
_FILE = re.compile(r"[\w-]*(licen[cs]e|copying|notice|terms)[\w-]*(\.(txt|md|rst))?", re.I | re.A)


def short_name(name: str) -> str:
    """A model's name without the folders of this machine: a path as its last part, a hub id as it is."""
    if "\\" in name:
        return PureWindowsPath(name).name
    if name and (is_path(name) or Path(name).exists()):
        return Path(name).name or Path(name).resolve().name
    return name


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub id is one or two words."""
    return name.startswith((".", "~", "/")) or name.count("/") > 1


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those in it, with short names where the model library keeps the paths it read from."""
    found = {
        key: without_places(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
    place = config.get(_PLACE)
    return {**found, _PLACE: short_name(place)} if isinstance(place, str) else found


def origin_of(model: PreTrainedModel) -> dict[str, Any]:
    """What the place that a model was loaded from, a folder or a hub id, says of it.

    The entries `license`, `license_name` and `license_link` of its card, `license_text` where the link is a
    file beside it, `base_model`, and the `revision` of a hub id. Nothing is made up: a source without a
    card, or with an unreadable one, gives nothing.
    """
    name = str(model.name_or_path or "")
    return _of_folder(Path(name)) if name and Path(name).is_dir() else of_hub(name, model.config)


def of_hub(name: str, config: Any = None) -> dict[str, Any]:
    """What a name says by itself: a hub id with an owner is the base model."""
    if name.count("/") != 1 or is_path(name) or short_name(name) != name:
        return {}
    revision = getattr(config, "_commit_hash", None)
    return {BASE: name, **({REVISION: str(revision)} if revision else {})}


def _of_folder(folder: Path) -> dict[str, Any]:
    try:
        about = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except Exception:  # whatever is wrong with that card, it is not the program's fault
        about = None
    about = about or {}
    found = {key: about[key] for key in LICENCE if _plain(about.get(key))}
    link = found.get("license_link", "")
    terms = _text(folder / link) if isinstance(link, str) and _FILE.fullmatch(link) else None
    if terms is not None:
        found[TERMS] = terms
    # One of our own cards says what the source was made of; another one, what it is itself.
    if TAG in (about.get("tags") or ()) and _plain(about.get(BASE)):
        found[BASE] = about[BASE]
    return found


def _text(path: Path) -> str | None:
    """What a file says, None where it is no text of a licence."""
    try:
        terms = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return terms if len(terms) <= _LONGEST else None


def _plain(value: Any) -> bool:
    """A text, or a list of texts, as a card's entries are."""
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(item, str) for item in values)


def write_terms(origin: Mapping[str, Any], folder: Path) -> None:
    """Write the file of the licence that an origin carries into the folder of an export."""
    if TERMS in origin and not (folder / origin["license_link"]).exists():
        (folder / origin["license_link"]).write_text(origin[TERMS], encoding="utf-8")


def is_origin(value: Any) -> bool:
    """Whether a value is what `origin_of` gives: a stored program may say anything."""
    if not isinstance(value, dict) or not set(value) <= {*LICENCE, BASE, REVISION, TERMS}:
        return False
    if not all(map(_plain, value.values())):
        return False
    terms = value.get(TERMS)
    link = value.get("license_link")
    return terms is None or (
        isinstance(terms, str)
        and len(terms) <= _LONGEST
        and isinstance(link, str)
        and _FILE.fullmatch(link) is not None
    )
