"""Help, catalogues and wrong usage answer without torch: counted in modules, not in seconds."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sparsify
from sparsify.ir.text import to_text

HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "scipy",
    "numpy",
    "matplotlib",
    "accelerate",
)
# What may be imported before a verb runs; `typer` and `rich` alone are two thirds of it.
MOST = 900
# Each line of words is answered by a fork of a process that has imported the entry point and no more.
WATCH = """
import json, os, sys
from sparsify.cli import main
for words in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        for stream in (1, 2):
            os.dup2(write, stream)
        sys.argv[1:] = words
        try:
            main()
        except SystemExit as stop:
            heavy = sorted(name for name in {heavy!r} if name in sys.modules)
            print("HEAVY", heavy, len(sys.modules), stop.code, flush=True)
        os._exit(0)
    os.close(write)
    with open(read) as said:
        # At once, or the next fork would say it again.
        print(json.dumps(said.read()), flush=True)
    os.wait()
"""
ANSWERS = (
    (["--help"], 0, "Usage"),
    (["run", "--help"], 0, "--pipeline"),
    (["--version"], 0, "sparsify-fx "),
    (["passes"], 0, "insert-masks"),
    (["passes", "choose-masks"], 0, "sparsity"),
    (["recipes"], 0, "sparsegpt"),
    (["recipes", "sparsegpt"], 0, "insert-probes{gram=true} |\n"),
    (["recipes", "sparsgpt"], 1, "did you mean 'sparsegpt'"),
    (["passes", "prune-head"], 1, "did you mean 'prune-heads'"),
    (["run", "--nonsense"], 2, "No such option"),
    (["run", "--model", "embedded", "--out", "x", "--recipe", "nil"], 1, "no recipe is called"),
    (
        ["run", "--model", "embedded", "--out", "x", "--pipeline", "insert-mask"],
        1,
        "did you mean 'insert-masks'",
    ),
    (
        ["run", "--model", "embedded", "--out", "x", "--pipeline", "choose-masks{ratio=1}"],
        1,
        "has no option 'ratio'",
    ),
    (["run", "--model", "embedded", "--out", "x", "--json", "no/such/f.json"], 1, "no folder"),
    (["show", "embedded", "--pipeline", "prune-headz"], 1, "did you mean 'prune-heads'"),
    (["eval", "embedded", "--limit", "0"], 1, "--limit 0 must be from 1"),
)


def asked(lines):
    """What is said to each line of words: heavy modules, number of modules, exit code, output."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(heavy=HEAVY)],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = []
    for line in done.stdout.splitlines():
        output, last = json.loads(line).rsplit("HEAVY ", 1)
        heavy, count, code = last.rsplit(" ", 2)
        found.append((ast.literal_eval(heavy), int(count), int(code), output))
    return found


@pytest.fixture(scope="module")
def answered():
    lines = [words for words, _, _ in ANSWERS]
    return dict(zip(map(" ".join, lines), asked(lines), strict=True))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    ANSWERS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_without_what_takes_seconds_to_import(words, code, said, answered):
    heavy, count, exit_code, output = answered[" ".join(words)]
    assert said in output
    assert (exit_code, heavy) == (code, [])
    assert count < MOST


def test_a_saved_program_is_shown_without_what_takes_seconds_to_import(tmp_path, traced):
    program = sparsify.parse("insert-masks").run(traced("llama"))
    sparsify.save(program, tmp_path / "out" / "safetensors")
    places = (tmp_path / "out", tmp_path / "out/safetensors/program.txt")
    for heavy, count, exit_code, output in asked([["show", str(place)] for place in places]):
        assert output.startswith("program LlamaForCausalLM features {mask.weights}\n  %0 : i64[")
        assert to_text(program) in output
        assert (exit_code, heavy) == (0, [])
        assert count < MOST


def test_the_package_alone_imports_next_to_nothing():
    text = "import sys; before = set(sys.modules); import sparsify; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80


def test_every_name_of_the_face_is_there_and_typed():
    tree = ast.parse(Path(sparsify.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {
        name: home if ":" in home else f"{home}:{name}" for name, home in sparsify._HOMES.items()
    }
    assert names == homes
    assert all(getattr(sparsify, name) is not None for name in homes)
    assert set(homes) <= set(dir(sparsify))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sparsify.nothing


def test_loading_as_the_first_act_knows_every_feature(tmp_path, traced):
    text = "insert-lora{rank=2} | insert-masks | insert-experts{experts=2 top=1 rank=2}"
    sparsify.save(sparsify.parse(text).run(traced("llama")), tmp_path / "saved")
    code = f"import sparsify; print(sorted(sparsify.load({str(tmp_path / 'saved')!r}).features))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "['experts', 'lora', 'mask.weights']"
