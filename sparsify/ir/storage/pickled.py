"""A program as something Python can pickle: its graph as data, its tensors as themselves.

Types of nodes are made anew on arrival: fake tensors belong to the process that made them.
"""

import copyreg
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from sparsify.ir.program import Program
from sparsify.ir.storage.graph_json import graph_from_json, graph_to_json
from sparsify.ir.types import propagate

# What a program holds besides its module, as `Program` is given it.
_KEPT = ["sample", "dynamic", "limits", "source", "features", "plan", "log", "aliases", "tokenizer"]


def with_tensors(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    """The same program over other tensors, by path; they are shared, not copied."""
    return _assembled(_parts(program), dict(tensors))


def _parts(program: Program) -> dict[str, Any]:
    return {
        "graph": graph_to_json(program.graph),
        "training": program.module.training,
        "trainable": {path: p.requires_grad for path, p in program.module.named_parameters()},
        "fields": {name: getattr(program, name) for name in _KEPT},
    }


def _assembled(parts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    program = Program(module=fx.GraphModule(nn.Module(), fx.Graph()), **parts["fields"])
    for path, value in tensors.items():
        program.put(path, value, trainable=parts["trainable"].get(path))
        if isinstance(value, nn.Parameter):  # itself, so that an optimiser's reference stays one
            _owner(program.module, path)._parameters[path.rpartition(".")[2]] = value
    program.module = fx.GraphModule(program.module, graph_from_json(parts["graph"]))
    nn.Module.train(program.module, parts["training"])
    propagate(program)
    return program


def _owner(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path.rpartition(".")[0])


def _reduced(program: Program) -> tuple[Callable[..., Program], tuple[Any, ...]]:
    return _assembled, (_parts(program), dict(program.tensors()))


copyreg.pickle(Program, _reduced)
