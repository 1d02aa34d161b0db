"""What the task files of this folder read their items with; the harness calls these functions by name."""

import json
from pathlib import Path
from typing import Any

import datasets


def read(file: str, task_data: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The rows of a jsonl file in the folder `task_data`; ValueError when no folder is given."""
    if task_data is None:
        raise ValueError(f"it reads {file} from a folder; name that by --task-data")
    with (Path(task_data) / file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return {"test": datasets.Dataset.from_list(rows)}


def filled(row: dict[str, Any]) -> list[str]:
    """A sentence up to its gap, with either option in place of that."""
    before = row["sentence"].partition("_")[0]
    return [before + row["option1"], before + row["option2"]]


def behind(row: dict[str, Any]) -> str:
    """What follows the gap of a sentence."""
    after: str = row["sentence"].partition("_")[2]
    return after.strip()
