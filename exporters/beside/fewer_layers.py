"""A program some of whose layers are gone, under the names and the config of a model that never had them.

Removed layers leave holes in the numbers of those that stay: `layers.0, layers.3` become `layers.0,
layers.1`. The config entry that counts them is found by what it does to the names of the class, and lists
with one entry a layer lose those of the removed ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from exporters.beside.config_search import empty_model, entries, with_changes
from sparsify.errors import ExportError
from sparsify.ir.graph import renamed
from sparsify.ir.program import Program
from sparsify.pretrained.quiet import quiet


@dataclass(frozen=True)
class _Run:
    """Numbered modules, `prefix.N`, of `count` of which those in `kept` stay."""

    prefix: str
    count: int
    kept: tuple[int, ...]

    def numbers(self, names: Iterator[str]) -> set[int]:
        """The numbers that some names have behind the prefix."""
        start = f"{self.prefix}."
        rest = (name[len(start) :].partition(".")[0] for name in names if name.startswith(start))
        return {int(part) for part in rest if part.isdecimal()}

    def renamed(self, name: str) -> str:
        """A name of the program with the new number of its layer."""
        start = f"{self.prefix}."
        number, dot, rest = name.removeprefix(start).partition(".")
        if not name.startswith(start) or not number.isdecimal():
            return name
        return f"{start}{self.kept.index(int(number))}{dot}{rest}"


def without_gaps(program: Program, cls: type[PreTrainedModel]) -> Program:
    """The program with its layers numbered anew, and with a config that counts those that stay.

    The program itself where no layer is gone; tensors are shared. Raises ExportError for single blocks that
    are gone, and where no config says so few layers.
    """
    blocks = [path for part in program.plan.get("blocks", []) for path in part]
    gone = [path for part in program.plan.get("layers", []) for path in part]
    if blocks:
        raise ExportError(
            f"huggingface cannot leave out the {len(blocks)} blocks that prune-layers removed, since no "
            "config names single blocks; export to onnx or safetensors"
        )
    if not gone:
        return program
    with quiet():
        for run in _runs(program, cls, gone):
            config = _config(program, cls, run)
            program = renamed(program, run.renamed)
            program.source = replace(program.source, config=config)
    return program


def _runs(program: Program, cls: type[PreTrainedModel], gone: list[str]) -> list[_Run]:
    """The numbered modules that layers at these paths were taken from."""
    there = [path for path, _ in program.tensors()]
    names = list(empty_model(cls, program.source.config).state_dict())
    found: dict[str, _Run] = {}
    for path in gone:
        prefix = _home(path, there)
        if prefix is None:
            raise ExportError(
                f"huggingface cannot leave out the layer of @{path}, whose tensors have no number of their "
                "own; export to onnx or safetensors"
            )
        run = _Run(prefix, 0, ())
        count, kept = len(run.numbers(iter(names))), sorted(run.numbers(iter(there)))
        found[prefix] = _Run(prefix, count, tuple(kept))
    return list(found.values())


def _home(path: str, there: list[str]) -> str | None:
    """What stands before the number of a removed layer: the first number nothing is left under."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        under = ".".join(parts[: i + 1]) + "."
        if part.isdecimal() and not any(name.startswith(under) for name in there):
            return ".".join(parts[:i])
    return None


def _config(program: Program, cls: type[PreTrainedModel], run: _Run) -> dict[str, Any]:
    """The program's config with the new number of layers in the entry that counts them."""
    source = dict(program.source.config)
    before = set(empty_model(cls, source).state_dict())
    left = len(run.kept)
    for path, value in entries(source):
        if isinstance(value, bool) or value != run.count:
            continue
        config = with_changes(_cut_lists(source, run), [(path, left)])
        try:
            after = set(empty_model(cls, config).state_dict())
        except Exception:  # whatever the class says of an entry that counts something else
            continue
        gone = before - after
        inside = all(name.startswith(f"{run.prefix}.") for name in gone)
        if gone and inside and after < before and run.numbers(iter(after)) == set(range(left)):
            return config
    raise ExportError(
        f"no config of {cls.__name__} says {left} of {run.count} modules at '{run.prefix}'; "
        "export to onnx or safetensors"
    )


def _cut_lists(config: Mapping[str, Any], run: _Run) -> dict[str, Any]:
    """Lists with one entry a layer, known by their key and length, without those of removed layers."""
    cut: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            cut[key] = _cut_lists(value, run)
        elif "layer" in key and isinstance(value, list | tuple) and len(value) == run.count:
            cut[key] = [value[number] for number in run.kept]
        else:
            cut[key] = value
    return cut
