"""Rows of a table that grows over days: each is on disk once known, and a run goes on where it ended."""

import json
from pathlib import Path
from typing import Any

from sparsify.disk.files import write_json

Row = dict[str, Any]


class Rows:
    """The rows of a JSON file by name; each `put` writes the file anew, to a temporary name first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.is_file():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def get(self, name: str) -> Row:
        """The row of a name, empty while nothing is known."""
        return self.rows.get(name, {})

    def put(self, name: str, **figures: Any) -> None:
        """Add figures to a row."""
        self.rows[name] = {**self.get(name), **figures}
        write_json(self.path, {"rows": self.rows})
