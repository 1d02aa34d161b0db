"""The matrix of versions: what is found, what is missing, and what its table says."""

import json
import sys

from tests.matrix import matrix

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_an_interpreter_is_one_that_starts_and_is_of_the_version(tmp_path, monkeypatch):
    assert matrix.interpreter("3.99") is None
    found = matrix.interpreter(HERE)
    assert found is not None
    assert matrix.said([found, "-c", "print(1)"]) == "1"
    broken = tmp_path / f"python{HERE}"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(matrix, "candidates", lambda version: iter([str(broken), "", found]))
    assert matrix.interpreter(HERE) == found
    monkeypatch.setattr(matrix, "candidates", lambda version: iter([str(broken), found]))
    assert matrix.interpreter("3.99") is None


def test_missing_and_failing_versions_are_told(tmp_path, monkeypatch, capsys):
    rows = {
        "3.11": {
            "python": "3.11.7", "result": "works", "install": 30.5, "seconds": 9.0,
            "kernels": "avx2", "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        },
        "3.12": {"python": "3.12", "result": "not on this machine"},
        "3.13": {"python": "3.13.0", "result": "not installed", "error": "no wheel of torch"},
    }  # fmt: skip
    monkeypatch.setattr(matrix, "tried", lambda version, wheel, folder: rows[version])

    def code(versions):
        words = ["matrix.py", "one.whl", "--python", versions, "--json", str(tmp_path / "m.json")]
        monkeypatch.setattr(sys, "argv", words)
        return matrix.main()

    assert code("3.11,3.12") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["3.12", "not", "on", "this", "machine"]
    assert lines[-2].split() == [
        "3.11.7",
        "works",
        "30.5",
        "s",
        "9.0",
        "s",
        "avx2",
        "2.13.0",
        "1.31.1",
    ]
    told = json.loads((tmp_path / "m.json").read_text())
    assert told == {"wheel": "one.whl", "rows": [rows["3.11"], rows["3.12"]]}
    assert code("3.12") == 1
    assert code("3.11,3.13") == 1
    assert "no wheel of torch" in capsys.readouterr().out
