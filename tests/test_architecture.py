"""Floors, sizes, names: what the tree promises, kept by reading the source."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import exporters
import passes

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for package in ("sparsify", "passes", "exporters")
    for path in (ROOT / package).rglob("*.py")
)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
# Lowest first; a module belongs to the longest prefix that fits it and imports its own floor or below.
# The face of the package, `sparsify` itself, stands over all of them: a new folder has to be named here.
FLOORS = [
    {
        "sparsify.errors",
        "sparsify.exclusive",
        "sparsify.signals",
        "sparsify.ranks",
        "sparsify.native",
        "sparsify.plugins",
        "sparsify.version",
        "sparsify.disk",
    },
    {"sparsify.text", "sparsify.tensors", "sparsify.data", "sparsify.pretrained"},
    {"sparsify.ir.inputs", "sparsify.ir.ops", "sparsify.ir.tensor_names", "sparsify.ir.mode"},
    {"sparsify.ir.program"},
    {"sparsify.ir.bounds", "sparsify.ir.types", "sparsify.ir.views"},
    {"sparsify.ir.graph", "sparsify.ir.text", "sparsify.ir.floats", "sparsify.ir.device"},
    {"sparsify.ir.axes", "sparsify.ir.trace", "sparsify.ir.lower"},
    {"sparsify.ir.features", "sparsify.ir.verify", "sparsify.ir.storage", "sparsify.ir.facts"},
    {"sparsify.ir.decode", "sparsify.ir.run"},
    {"sparsify.train", "sparsify.describe", "sparsify.runtime"},
    {"sparsify.select", "sparsify.measure"},
    {"sparsify.pack", "sparsify.engine", "sparsify.report"},
    {"passes", "exporters", "sparsify.stream", "sparsify.fusion"},
    {"sparsify.recipes"},
    {"sparsify.commands"},
    {"sparsify.cli"},
    {"sparsify.__main__"},
]
# Names of models and of their parts: the graph says what is what.
FOREIGN = re.compile(
    r"llama|qwen|(?<!sparse)(?<!short)gpt|mistral|gemma|roberta|distil(?!l)|q_proj|k_proj|v_proj|o_proj|up_proj|down_proj|"
    r"gate_proj|c_attn|c_fc|c_proj|self_attn|lm_head|\bwte\b|\bbert\b|\bopt\b",
    re.IGNORECASE,
)
NODE_PARTS = {"args", "kwargs", "target"}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def short(path):
    return str(path.relative_to(ROOT))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = (ROOT / Path(*whole.split("."))).with_suffix(".py").exists()
                yield (whole if known else node.module), node.lineno


def ours(name):
    return name.split(".")[0] in {"sparsify", "passes", "exporters"}


def unit(name):
    """The folder or file that a module belongs to among those of the floors."""
    if name == "sparsify":
        return name
    fits = [
        prefix
        for prefixes in FLOORS
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert fits, f"{name} stands on no floor"
    return max(fits, key=len)


def floor(name):
    if name == "sparsify":
        return len(FLOORS)
    return next(number for number, prefixes in enumerate(FLOORS) if unit(name) in prefixes)


def edges():
    for path, tree in TREES.items():
        for name, line in imports(tree):
            if ours(name):
                yield path, module_of(path), name, line


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def docstring_lines(node):
    """Lines of a function's docstring: explaining more must cost nothing."""
    if ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def test_imports_run_down():
    upwards = [
        f"{short(path)}:{line} imports {name}"
        for path, module, name, line in edges()
        if floor(name) > floor(module)
    ]
    assert upwards == []


def test_the_floors_are_felt():
    """The rule must be able to fail: known pairs are told apart."""
    assert floor("sparsify.ir.axes.walk") < floor("sparsify.train.loop") < floor("passes.train")
    assert floor("sparsify.tensors.masks") < floor("sparsify.ir.views.linear")
    assert floor("exporters.onnx") == floor("passes.train") < floor("sparsify.cli")
    assert len(list(edges())) > 100


def test_folders_form_no_circle():
    arrows = {}
    for _, module, name, _ in edges():
        source, target = unit(module), unit(name)
        if source != target:
            arrows.setdefault(source, set()).add(target)
    assert {"sparsify.ir.trace", "sparsify.engine"} <= set(TopologicalSorter(arrows).static_order())


def test_passes_and_exporters_are_blind_to_each_other_and_to_the_command_line():
    for path, module, name, line in edges():
        package, other = module.split(".")[0], name.split(".")[0]
        if package != "sparsify":
            assert other in {"sparsify", package}, f"{short(path)}:{line}"
        elif module != "sparsify":  # the face of all
            assert other == "sparsify", f"{short(path)}:{line} reaches past the registry"


def test_passes_do_not_import_one_another():
    for path, module, name, line in edges():
        if module.startswith("passes.") and name.startswith("passes"):
            raise AssertionError(f"{short(path)}:{line} imports {name}")


def test_nobody_inside_imports_a_face():
    faces = {module_of(p) for p in FILES if p.name == "__init__.py"}
    top = {"sparsify", "sparsify.__main__", "sparsify.cli"}
    found = [
        f"{short(path)}:{line} imports the face {name}"
        for path, module, name, line in edges()
        if name in faces and module not in top and not module.startswith("sparsify.commands")
    ]
    assert found == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if "sparsify/ir/" not in p.as_posix()], ids=short
)
def test_nodes_are_opened_in_ir_only(path):
    """`x.args`, `x.kwargs`, `x.target`, where x is no call, module or object of another kind known here."""
    harmless = {"self", "cls", "item", "parser", "P"}  # P: the parameters of a decorated function
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Attribute) and node.attr in NODE_PARTS:
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            assert name in harmless, (
                f"{short(path)}:{node.lineno} reads .{node.attr} of {ast.unparse(owner)}"
            )


def test_files_and_functions_are_short():
    for path, tree in TREES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{short(path)} has {lines} lines"
        for node in functions(tree):
            size = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            assert size <= 50, f"{short(path)}:{node.lineno} {node.name} has {size} lines"


def test_tests_are_short_and_no_package():
    for path in (ROOT / "tests").rglob("*.py"):
        assert path.name != "__init__.py"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


@pytest.mark.parametrize("catalogue", [passes, exporters], ids=["passes", "exporters"])
def test_file_name_class_and_text_say_the_same(catalogue):
    package = catalogue.__name__
    named = set()
    for item in catalogue.ALL:
        stem = item.name.replace("-", "_")
        assert item.__module__ == f"{package}.{stem}"
        assert item.__name__.lower() == stem.replace("_", "")
        named.add(stem)
        doc = ast.get_docstring(TREES[ROOT / package / f"{stem}.py"])
        assert doc.startswith(f"{item.name}: "), stem
    files = {p.stem for p in (ROOT / package).glob("*.py")}
    assert named <= files
    assert package != "passes" or files == named | {"__init__"}


def public(tree):
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    inner
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                )


def test_everything_public_is_explained():
    for path, tree in TREES.items():
        assert ast.get_docstring(tree), f"{short(path)} has no docstring"
        for node in public(tree):
            assert ast.get_docstring(node), f"{short(path)}:{node.lineno} {node.name}"


def words(path):
    """Names and texts of a file that its code acts on: docstrings and comments are left out."""
    tree = TREES[path]
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


@pytest.mark.parametrize("path", [p for p in FILES if "embedded" not in p.parts], ids=short)
def test_no_architecture_decides_anything(path):
    for line, word in words(path):
        assert not FOREIGN.search(word), f"{short(path)}:{line} says '{word}'"
