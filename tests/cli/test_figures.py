"""`--json` of the verbs that print what a model is, and `python -m sparsify` beside a folder of our name."""

import json
import os
import subprocess
import sys


def test_show_as_json(model, cli, tmp_path):
    path = tmp_path / "shown.json"

    def shown(*words):
        code, printed, _ = cli("show", model, *words, "--json", path)
        assert code == 0
        return printed, json.loads(path.read_text())

    printed, found = shown("--pipeline", "insert-masks")
    assert (found["class"], found["features"]) == ("LlamaForCausalLM", ["mask.weights"])
    assert printed.endswith(found["text"])
    axes = {row["kind"]: row for row in shown("--axes")[1]["axes"]}
    assert (axes["channels"]["size"], axes["channels"]["count"]) == ("96", 2)
    assert shown("--cost")[1]["cost"]["parameters"] > 0


def test_export_as_json(model, cli, tmp_path):
    path, out = tmp_path / "made.json", tmp_path / "out"
    words = ["--to", "safetensors,huggingface", "--out", out, "--json", path]
    assert cli("export", model, *words)[0] == 0
    found = json.loads(path.read_text())["formats"]
    assert list(found) == ["safetensors", "huggingface"]
    size = sum(file.stat().st_size for file in (out / "huggingface").iterdir())
    assert found["huggingface"] == {"folder": str(out / "huggingface"), "bytes": size}


def test_a_folder_called_passes_beside_python_m(tmp_path):
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("raise RuntimeError('not ours')")
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["sparsify"].__file__)))
    done = subprocess.run(
        [sys.executable, "-m", "sparsify", "schema"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "insert-masks" in done.stdout
