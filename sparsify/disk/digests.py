"""SHA-256 of texts, JSON and files; light, so that the command line can ask before torch is imported."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sparsify.disk.files import require_file


def of_text(text: str) -> str:
    """SHA-256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_json(value: Any) -> str:
    """SHA-256 of a value of JSON, whatever its spaces and the order of its keys."""
    return of_text(json.dumps(value, sort_keys=True, separators=(",", ":")))


def of_file(path: Path) -> str:
    """SHA-256 of a file; DataError when it is no plain file."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
