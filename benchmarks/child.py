"""A process of its own for one part of a benchmark."""

import subprocess
from collections.abc import Sequence


def printed_by(name: str, words: Sequence[str]) -> str:
    """What a command prints; ends the benchmark with the last of its errors when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return done.stdout
