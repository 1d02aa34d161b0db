"""What stands in code fences: Python runs, commands and YAML are understood, pipelines parse.

A block that cannot be run says why on the line above it: `<!-- not run: needs Node.js -->`.
"""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import exporters
import sparsify
from sparsify.cli import app
from sparsify.commands.config import from_file
from sparsify.engine import registry
from sparsify.engine.pipeline import parse
from sparsify.errors import SparsifyError
from sparsify.pretrained import load
from sparsify.recipes import recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
OURS = ("sparsify", "passes", "exporters")
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# The error of wrong usage, of whichever click typer brings.
USAGE = typer.BadParameter.__base__
COMMAND = r"(?:sparsify-fx|python|make|pip) "
# Held against the files of a package, which other tests install and run.
PACKAGE_PAGE = "writing-a-pass.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block: its language (none or `text`: pipelines, formulas, output), and why it is not run."""

    language: str
    code: str
    why: str | None


def blocks(page):
    return [Block(m["language"], m["code"], m["why"]) for m in BLOCK.finditer(page.read_text())]


def fences(page, language):
    return [block.code for block in blocks(page) if block.language == language]


@each_page
def test_every_block_is_checked_or_says_why_not(page):
    text = page.read_text()
    assert text.count("```") == 2 * len(blocks(page)), "a fence is not closed, or not at the margin"
    assert text.count("<!-- not run") == sum(block.why is not None for block in blocks(page))
    for block in blocks(page):
        assert block.language in ("", "text", "python", "sh", "yaml", "toml") or block.why, (
            block.code
        )
        assert block.language or not re.match(COMMAND, block.code), f"```sh:\n{block.code}"
    assert not re.search(rf"^    {COMMAND}", BLOCK.sub("", text), re.MULTILINE), "fence it as sh"


def test_the_page_about_passes_shows_the_files_of_the_package():
    page, package = ROOT / "docs" / PACKAGE_PAGE, ROOT / "examples" / "plugin"
    files = [
        package / "sparsify_gates" / name
        for name in re.findall(r"`sparsify_gates/(\w+\.py)`", page.read_text())
    ]
    assert fences(page, "python") == [path.read_text() for path in files]
    assert {path.name for path in files} | {"__init__.py"} == {
        path.name for path in (package / "sparsify_gates").glob("*.py")
    }
    (entries,) = fences(page, "toml")
    assert entries in (package / "pyproject.toml").read_text()


@each_page
def test_python_compiles_and_names_what_there_is(page):
    for code in fences(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, item.name) for item in node.names), node.module
            here = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if here and node.value.id == "sparsify":
                assert hasattr(sparsify, node.attr), node.attr


def undefined(folder):
    """What ruff says of names that Python files use and never define."""
    options = ("--isolated", "--select=F821", "--output-format=concise", str(folder))
    # By its module: the folder of its script need not be on the path.
    words = [sys.executable, "-m", "ruff", "check", *options]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def test_python_uses_no_name_that_it_does_not_define(tmp_path):
    for page in PAGES:
        (tmp_path / f"{page.stem}.py").write_text("\n".join(fences(page, "python")))
    assert undefined(tmp_path) == "All checks passed!\n"
    (tmp_path / "README.py").write_text("trace(model)")
    assert "Undefined name `model`" in undefined(tmp_path)


# Trainer warns of what it will change one day; that is not the pages'.
@pytest.mark.filterwarnings("default")
def test_python_runs(tmp_path, monkeypatch):
    """Each page from its first block to its last, on a smaller model, 24 steps a training."""
    smaller(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "source_of", lambda name: "m" if name == "embedded" else name)
    text = (ROOT / "sparsify" / "embedded" / "heldout.txt").read_text()[:60_000]
    for name in ("text.txt", "web.txt"):
        (tmp_path / name).write_text(text)
    (tmp_path / "code.jsonl").write_text('{"text": "def f(x): return x + 1"}\n' * 200)
    (tmp_path / "folder").symlink_to("m")
    names = follow(ROOT / "README.md")
    sparsify.export(names["program"], "out", ["onnx-decode"])  # beside the README's own
    for page in PAGES:
        if page.name not in ("README.md", PACKAGE_PAGE):
            follow(page)


def follow(page):
    """Run the blocks of a page, one after the other, in names of their own, and return these."""
    names = {}
    for number, block in enumerate(blocks(page), 1):
        if block.language == "python" and not block.why:
            code = re.sub(r"(train\{+steps=|max_steps=)\d+", r"\g<1>24", block.code)
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    return names


def smaller(folder):
    """A folder with a model of one layer that reads the embedded model's tokens."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(load.source_of("embedded")).save_pretrained(folder)


def words_of(line):
    """A command's words, what may be left out as if given, of `a|b` the first."""
    words = shlex.split(line, comments=True)
    words = [
        w if re.search(r"\w\[", w) else w.strip("[]") for w in words
    ]  # pip's name[extra] stays
    return [re.sub(r"(?<=\w)\|\w.*", "", w) for w in words[: (*words, ">").index(">")]]


@each_page
def test_commands_are_understood(page):
    for block in blocks(page):
        if block.language == "sh" and not block.why:
            for line in block.code.replace("\\\n", " ").splitlines():
                understand(words_of(line))
    prose = re.sub(r"\s*\n\s*", " ", BLOCK.sub("", page.read_text()))
    for line in re.findall(rf"`({COMMAND}[^`]+)`", prose):
        understand(words_of(line), whole=False)


@pytest.mark.parametrize(
    "line",
    [
        "sparsify-fx prune m",
        "sparsify-fx run --model m --out o --recipe nothing",
        "sparsify-fx run --model m --out o --recipe wanda --to tflite",
        "sparsify-fx run --model m --recipe wanda",
        "sparsify-fx bench out --against m --lengths 1",
        "sparsify-fx show m --pipeline insert-nothing",
        "python benchmarks/nothing.py",
        "python benchmarks/slim.py --nothing 3",
        "make nothing",
        'pip install "sparsify-fx[nothing]"',
    ],
)
def test_commands_that_are_wrong_are_not(line):
    with pytest.raises((AssertionError, LookupError, OSError, SparsifyError, USAGE)):
        understand(words_of(line))


def understand(words, whole=True):
    """Hold a command against the command line, the benchmarks, the Makefile or the extras.

    Of one that is not whole, as prose names them, options may be missing.
    """
    first, *rest = words
    if first == "sparsify-fx":
        understand_ours(*rest, whole=whole)
    elif first == "python" and rest[0] == "-c":
        ast.parse(rest[1])
    elif first == "python" and rest[0] != "-m":
        source = (ROOT / rest[0]).read_text()
        for name in re.findall(r"^from (\w+) import", source, re.MULTILINE):
            beside = (ROOT / rest[0]).with_name(f"{name}.py")
            source += beside.read_text() if beside.exists() else ""
        asked = [word for word in rest if word.startswith("--")]
        assert all(re.search(rf"{word}\b", source) for word in asked), words
    elif first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), words
    elif first == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"sparsify-fx\[([\w,]+)\]", " ".join(rest))
        extras = {extra for names in asked for extra in names.split(",")}
        assert extras <= set(project["optional-dependencies"]), words
        assert all((ROOT / word).exists() for word in rest if word.startswith("./")), words


def understand_ours(verb, *words, whole):
    """Options must exist, required ones be there, and recipes, pipelines and formats be known."""
    if verb.startswith("-"):
        return
    command = typer.main.get_command(app).commands[verb]
    context = command.context_class(command)
    given, _, _ = command.make_parser(context).parse_args(list(words))
    if whole and "config" not in given:
        for param in command.params:
            assert not param.required or given.get(param.name) is not None, (verb, param.name)
    if "recipe" in given:
        recipe(given["recipe"])
    for option in ("pipeline", "masks"):
        if "..." not in given.get(option, "..."):
            parse(given[option])
    known = {kind.name for kind in exporters.ALL}
    assert {re.sub(r"\{.*", "", name) for name in given.get("to", "onnx").split(",")} <= known


@each_page
def test_yaml_is_a_file_of_a_run(page, tmp_path):
    for code in fences(page, "yaml"):
        (tmp_path / "run.yaml").write_text(code)
        command = typer.main.get_command(app).commands["run"]
        context = command.context_class(command)
        from_file(context, tmp_path / "run.yaml")
        assert parse(context.default_map["pipeline"])


def pipelines(page):
    """Fenced and quoted pipelines of a page, `...` for parts that are left out taken away."""
    inline = re.findall(r"`([a-z]+-[a-z]+\{[^`]*\}[^`]*|[^`\n]* \| [^`\n]*)`", page.read_text())
    for text in (*fences(page, ""), *inline):
        text = re.sub(r"^\s*\.\.\. \||\| \.\.\.\s*$", "", text.strip(), flags=re.MULTILINE)
        lines = [line for line in text.splitlines() if not line.strip().startswith("...")]
        text = " ".join(lines)
        first = re.match(r"\s*([a-z-]+)", text)
        if (
            first
            and first[1] in registry.passes()
            and "..." not in text
            and not re.search(r"\{[a-z]+\}", text)
        ):
            yield text


@each_page
def test_pipelines_parse(page):
    found = list(pipelines(page))
    for text in found:
        pipeline = parse(text)
        assert parse(str(pipeline)) == pipeline
    assert found or page.name not in (
        "adaptive.md",
        "omission.md",
        "slim.md",
        "losa.md",
        "sheared.md",
        "recipes.md",
    )
