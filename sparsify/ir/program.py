"""The program: a flat graph module, the inputs it was traced with, and what passes have done to it."""

import copy
import html
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, TypeVar, cast

import torch
from torch import Tensor, fx

from sparsify.errors import SparsifyError
from sparsify.ir.inputs import check_known, check_sizes, default_input, shape_words
from sparsify.ir.mode import evaluating

Fact = TypeVar("Fact")


class Plan(TypedDict, total=False):
    """What passes have decided or removed, as JSON values; an entry is there once a pass has made it.

    `axes` are the kept indices of each shrinking in order (`sparsify.ir.axes.shrink.keep`), `layers` and
    `blocks` the paths of the masks of what went, one list a pass, `shares` the sparsity or N:M of a weight
    by its path, `values` what it is to be rounded to, as in int4:32, `experts` how those beside a weight
    are computed by its path, `packed` how a weight was packed by its path, `clusters` the numbers of the
    clusters of experts by the path of their router, `stacks` the paths of weights that were approximated
    together, one list a stack, `factors` the paths of what a weight was split into by its path, `reordered`
    how often entries of weights were put in another order.
    """

    axes: list[dict[str, Any]]
    layers: list[list[str]]
    blocks: list[list[str]]
    shares: dict[str, str]
    values: dict[str, str]
    experts: dict[str, dict[str, Any]]
    packed: dict[str, dict[str, Any]]
    clusters: dict[str, list[int]]
    stacks: list[list[str]]
    factors: dict[str, list[str]]
    reordered: int


@dataclass(frozen=True)
class Source:
    """What the program was traced from.

    `config` is the Hugging Face config as a dictionary (empty for a plain module), `model_class` and
    `output_class` are class names, `outputs` names the tensors of the graph's output tuple in order.
    `shapes` holds the shape of every parameter, tied ones once (empty where it is not known),
    `generation` the model's defaults for generation, `files` the text of files of other tools in the
    model's folder, by path, `origin` what its card says (`sparsify.pretrained.origin`), `known` the numbers
    of arguments of the model that the program was traced for and that are no inputs of it. No entry holds
    a path of the machine that traced it.
    """

    config: Mapping[str, Any]
    model_class: str
    output_class: str
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass(repr=False)
class Program:
    """A model as a flat `fx.GraphModule` over ATen ops, edited in place by passes.

    `module` takes the tensors of `sample` by name and returns a tuple of tensors. `dynamic` maps an
    input name to its symbolic dimensions, `{"input_ids": {0: "batch", 1: "length"}}`, `limits` the names of
    those that the model's code bounds to the least and the most they may be. `features` says
    what passes have put into the graph (`mask.weights`, `lora`, ...). `plan` holds what learning passes
    decided and what prune passes removed. `log` is the text of every finished pass.
    `aliases` maps a tied parameter's second name to the name that holds the tensor.

    After an error inside a pass the program is spent: trace or load it again.
    """

    module: fx.GraphModule
    sample: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    source: Source
    features: frozenset[str] = frozenset()
    plan: Plan = field(default_factory=Plan)
    log: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    tokenizer: Any = None
    _facts: dict[Hashable, tuple[Any, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __repr__(self) -> str:
        """What it is in a line: `Program(LlamaForCausalLM, 515 nodes, 5,401,856 parameters, lora)`."""
        return f"Program({', '.join(value for _, value in self._summary())})"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>"
            f"{html.escape(value)}</td></tr>"
            for name, value in [*self._summary(), *self._inputs()]
        )
        return f"<table>{rows}</table>"

    def _summary(self) -> list[tuple[str, str]]:
        count = sum(value.numel() for value in self.module.parameters())
        found = [
            ("model", self.source.model_class),
            ("nodes", f"{len(self.graph.nodes):,} nodes"),
            ("parameters", f"{count:,} parameters"),
        ]
        return [
            *found,
            *([("features", ", ".join(sorted(self.features)))] if self.features else []),
        ]

    def _inputs(self) -> list[tuple[str, str]]:
        found = []
        for name, value in self.sample.items():
            kind = str(value.dtype).removeprefix("torch.")
            found.append((name, f"{kind} {shape_words(value, self.dynamic.get(name, {}))}"))
        return [*found, *([("pipeline", " | ".join(self.log))] if self.log else [])]

    @property
    def graph(self) -> fx.Graph:
        """The graph of the module."""
        return self.module.graph

    def tensor(self, path: str) -> Tensor:
        """The parameter or buffer at a dotted path, as spelt in the state dict."""
        owner, name = self._owner(path)
        value = getattr(owner, name, None)
        if not isinstance(value, Tensor):
            raise SparsifyError(f"the program has no tensor '{path}'")
        return value

    def has(self, path: str) -> bool:
        """Whether a parameter or buffer lives at a dotted path."""
        try:
            self.tensor(path)
        except SparsifyError:
            return False
        return True

    def put(self, path: str, value: Tensor, *, trainable: bool | None = None) -> None:
        """Store a tensor at a path, as a parameter (`trainable` given) or as a buffer (`None`)."""
        owner, name = self._owner(path, create=True)
        if hasattr(owner, name):
            delattr(owner, name)
        if trainable is None:
            owner.register_buffer(name, value.detach())
        else:
            parameter = torch.nn.Parameter(value.detach(), requires_grad=trainable)
            owner.register_parameter(name, parameter)

    def delete(self, path: str) -> None:
        """Forget the tensor at a path; the graph must no longer read it."""
        owner, name = self._owner(path)
        delattr(owner, name)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, then every buffer, with its path."""
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def fact(self, name: Hashable, find: Callable[["Program"], Fact]) -> Fact:
        """What `find` says of the graph and of the types of tensors, found once until one of them changes.

        It must not depend on the numbers in tensors, and whoever is given it must not change it.
        """
        state = self._state()
        if name not in self._facts or self._facts[name][0] != state:
            self._facts[name] = state, find(self)
        return cast(Fact, self._facts[name][1])

    def _state(self) -> Any:
        """What facts follow from: nodes with their arguments, types of tensors, inputs; compared whole."""
        nodes = [(n, n.target, n.args, tuple(n.kwargs.items())) for n in self.graph.nodes]
        held = {path: _type(value) for path, value in self.tensors()}
        return (
            nodes,
            held,
            {k: _type(v) for k, v in self.sample.items()},
            copy.deepcopy(self.dynamic),
        )

    def complete(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph's inputs from a batch: missing masks are ones, positions 0..T-1, segments 0.

        `batch` holds tensors `[batch, length]`; names the graph does not read are left out.
        Raises SparsifyError when an input has no default, or sizes or numbers that the program does not take.
        """
        check_known(batch, self.source.known)
        reference = next(iter(batch.values()))
        inputs = {}
        for name, example in self.sample.items():
            value = batch.get(name)
            value = default_input(name, reference) if value is None else value
            dtype = example.dtype if value.is_floating_point() else None
            inputs[name] = value.to(example.device, dtype)
            check_sizes(name, value, example, self.dynamic.get(name, {}), self.limits)
        return inputs

    def run(self, batch: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The outputs on a batch (the sample inputs by default), in evaluation mode, no gradients.

        Training mode, where it was on, is on again afterwards.
        """
        inputs = self.sample if batch is None else self.complete(batch)
        with evaluating(self.module), torch.no_grad():
            outputs: tuple[Tensor, ...] = self.module(**inputs)
        return outputs

    def clone(self) -> "Program":
        """A program with its own graph and its own weights; only the tokenizer is shared."""
        return self.over(copy.deepcopy(self.module))

    def shared(self) -> "Program":
        """A program with its own graph whose module holds the very tensors of this one."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        module = fx.GraphModule(self.module, graph)
        module.meta.update(self.module.meta)  # the types of ops among them, known as to a clone
        return self.over(module)

    def over(self, module: fx.GraphModule) -> "Program":
        """What the program says, over another module; neither sees what the other changes later."""
        return replace(
            self,
            module=module,
            sample=dict(self.sample),
            dynamic={name: dict(dims) for name, dims in self.dynamic.items()},
            plan=copy.deepcopy(self.plan),
            log=list(self.log),
            aliases=dict(self.aliases),
            limits=dict(self.limits),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        memo[id(self.tokenizer)] = self.tokenizer  # shared, as `clone` does
        made = object.__new__(type(self))
        memo[id(self)] = made
        memo[id(self._facts)] = {}  # they speak of the nodes of this program
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def _owner(self, path: str, *, create: bool = False) -> tuple[torch.nn.Module, str]:
        *parents, name = path.split(".")
        owner: torch.nn.Module = self.module
        for part in parents:
            child = getattr(owner, part, None)
            if child is None:
                if not create:
                    raise SparsifyError(f"the program has no tensor '{path}'")
                child = torch.nn.Module()
                owner.add_module(part, child)
            owner = child
        return owner, name


def _type(value: Tensor) -> Any:
    return tuple(value.shape), value.dtype, isinstance(value, torch.nn.Parameter)
