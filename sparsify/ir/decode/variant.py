"""The decode variant of a program: the same function with a key/value cache.

The model's class is traced once more, with caches and without weights. What passes decided is replayed on
it from the plan (layers, heads, channels, width, experts), then it takes the program's own tensors: dense
ones by name, packed ones and biases where the program has them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from transformers import PreTrainedModel

from sparsify.errors import TraceError, VerifyError
from sparsify.ir.axes.residual import blocks
from sparsify.ir.axes.shrink.keep import keep_from_json
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.decode.trace import CACHES, empty_past, output_names, past_name, trace_cached
from sparsify.ir.features.beside import add_beside
from sparsify.ir.features.bias import add_bias, added_biases, fold_bias, own_bias
from sparsify.ir.features.block_mask import (
    KINDS,
    add_block_mask,
    block_mask_path,
    block_masks,
    remove_block,
)
from sparsify.ir.features.packed_dense import (
    block_a_linear,
    block_a_table,
    block_weights,
    is_rounded,
    unblocked_weight,
)
from sparsify.ir.graph import redirect, sweep
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import PACKED, adapter, packed, slorb
from sparsify.ir.tensor_names import blocks as blocks_of
from sparsify.ir.trace.weightless import hollow
from sparsify.ir.types import propagate
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import Linear, linears
from sparsify.ir.views.packed import pack_linear, packed_linears
from sparsify.pretrained.load import class_named, config_of, quiet
from sparsify.pretrained.rope import switch_length
from sparsify.tensors.precision import relative_difference

# Features that the variant takes over; the others have to be folded or removed first.
DECODED = frozenset({PACKED, "adapters", "slorb"})
_TOLERANCE = 1e-4
_ROUNDED_TOLERANCE = 0.05  # as of `pack-nm`


def decoder(program: Program) -> Program:
    """The program with caches; it shares the tensors of the one it is made from.

    Inputs and outputs: see `sparsify.ir.decode.trace`. Raises TraceError for a model without a cache or a program
    that holds what passes still have to fold, VerifyError when the two do not agree.
    """
    left = program.features - DECODED
    if left:
        raise TraceError(
            f"the program still holds {', '.join(sorted(left))}; fold or remove it first"
        )
    made = _traced(program)
    # Axes first, while every tensor is there by which one of them may have been named.
    for keep in program.plan.get("axes", []):
        shrink(made, keep_from_json(keep), boundary=True)
    for kind in KINDS:
        for gone in program.plan.get(kind, []):
            _remove_blocks(made, kind, gone)
    _drop_dead_caches(made)
    _take_over(made, program)
    propagate(made)
    made.tokenizer, made.log = program.tokenizer, list(program.log)
    made.features = program.features
    _verify(made, program)
    return made


def check_decoder(program: Program) -> type[PreTrainedModel]:
    """The model class whose cache the variant would use; TraceError when there is none."""
    cls = class_named(program.source.model_class)
    if cls is None:
        raise TraceError(
            f"{program.source.model_class} is no class of transformers; only those have a cache"
        )
    if not cls.can_generate():
        raise TraceError(f"{cls.__name__} does not generate; a cache is for models that do")
    return cls


def _traced(program: Program) -> Program:
    cls = check_decoder(program)
    config = config_of(cls, program.source.config)
    dtype = next(p.dtype for p in program.module.parameters() if p.is_floating_point())
    with quiet():
        shapes = _cache_shapes(cls, config)
        model = hollow(cls, config, dtype)
        positions = "position_ids" in program.sample
        return trace_cached(model, shapes, program.source, positions=positions)


def _cache_shapes(cls: type[PreTrainedModel], config: Any) -> list[tuple[int, int, int]]:
    """KV heads, key size and value size of every layer, from a run without numbers."""
    refusal = f"{cls.__name__} has no key/value cache that a decoder could carry along"
    with torch.device("meta"), torch.no_grad():
        if config.is_encoder_decoder:
            raise TraceError(refusal)
        # Shapes alone are wanted, and products of experts on this device exist in bfloat16 alone.
        model = cls(config).eval().to(torch.bfloat16)
        result = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    found = getattr(result.past_key_values, "layers", None)
    if not found or any(getattr(layer, "keys", None) is None for layer in found):
        raise TraceError(refusal)
    return [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in found]


def _remove_blocks(made: Program, kind: str, gone: list[str]) -> None:
    found = {block_mask_path(block): block for block in blocks(analyse(made), kind)}
    for path in gone:
        add_block_mask(made, found[path])
    for mask in block_masks(made, kind):
        remove_block(made, mask)


def _drop_dead_caches(made: Program) -> None:
    """Take out the caches of layers that no longer lead to the logits, and number the others anew."""
    output = made.graph.output_node()
    results: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    living = _ancestors(results[0])
    inputs = {str(node.target): node for node in made.graph.find_nodes(op="placeholder")}
    layers = len(results) // len(CACHES)
    alive = [i for i in range(layers) if inputs[past_name(i, CACHES[0])] in living]
    if not alive:
        raise TraceError("no attention is left in the program; there is nothing to cache")
    kept = [results[0]]
    for i in alive:
        kept += results[1 + 2 * i : 3 + 2 * i]
    output.args = (tuple(kept),)
    sweep(made)
    other = inputs[past_name(alive[0], CACHES[0])]
    for i in set(range(layers)) - set(alive):
        for kind in CACHES:
            name = past_name(i, kind)
            # What is left of it is its length, which all caches have.
            redirect(inputs[name], other)
            made.graph.erase_node(inputs[name])
            del made.sample[name], made.dynamic[name]
    names = {past_name(i, k): past_name(new, k) for new, i in enumerate(alive) for k in CACHES}
    for old, new in names.items():
        inputs[old].target = new
    made.sample = {names.get(name, name): value for name, value in made.sample.items()}
    made.dynamic = {names.get(name, name): value for name, value in made.dynamic.items()}
    made.source = replace(made.source, outputs=output_names(len(alive)))
    made.module.recompile()


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The nodes whose values, not their sizes alone, lead to a node."""
    found, queue = {node}, [node]
    while queue:
        current = queue.pop()
        sources = () if current.target is torch.ops.aten.sym_size.int else current.all_input_nodes
        for source in sources:
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def _take_over(made: Program, program: Program) -> None:
    """Give the variant the program's tensors, its branches, its packed linears and its biases."""
    _add_branches(made, program)
    stored = {view.weight: view for view in packed_linears(program)}
    biases = _biases(program)
    for view in linears(made):
        if view.weight in biases and own_bias(view) is None:
            add_bias(made, view)
    for item in added_biases(made):
        with torch.no_grad():
            made.tensor(item.path).copy_(biases[item.linear.weight])
        fold_bias(made, item)
    for view in linears(made):
        found = stored.get(packed(view.weight))
        if found is not None:
            pack_linear(made, view, program.tensor(found.weight), found.layout)
    _take_blocks(made, program)
    sweep(made)
    for path, value in list(made.tensors()):
        if program.has(path):
            mine = program.tensor(path)
            made.put(path, mine, trainable=False if isinstance(value, torch.nn.Parameter) else None)
    made.module.recompile()
    set_training(made.module, False)


def _add_branches(made: Program, program: Program) -> None:
    """Put a branch beside every linear that has one in the program; weights of either may be packed there."""
    stored = {view.codes: view for view in block_weights(program)}

    def value(path: str) -> Tensor | None:
        if program.has(path):
            return program.tensor(path)
        found = stored.get(blocks_of(path)[0])
        return None if found is None else unblocked_weight(program, found)

    uses: dict[str, list[Linear]] = {}
    for view in linears(made):
        uses.setdefault(view.weight, []).append(view)
    for weight, found in uses.items():
        for paths in (adapter(weight), slorb(weight)):
            pair = {path: tensor for path in paths if (tensor := value(path)) is not None}
            if pair:
                add_beside(made, found, pair)


def _take_blocks(made: Program, program: Program) -> None:
    """Let linears and tables read codes and scales where those of the program do."""
    stored = {view.codes: view for view in block_weights(program)}
    every: list[Linear | Table] = [*linears(made), *tables(made)]
    for view in every:
        found = stored.get(blocks_of(view.weight)[0])
        if found is None:
            continue
        value = (program.tensor(found.codes), program.tensor(found.scales))
        if isinstance(view, Table):
            block_a_table(made, view, value, found.form)
        else:
            block_a_linear(made, view, value, found.form)


def _biases(program: Program) -> dict[str, Tensor]:
    """The bias of every linear that has one, dense or packed, by the weight's path."""
    found = {}
    for view in linears(program):
        bias = own_bias(view)
        if bias is not None and bias.op == "get_attr":
            found[view.weight] = program.tensor(str(bias.target))
    for stored in packed_linears(program):
        place = stored.node.args[2]
        if isinstance(place, fx.Node) and place.op == "get_attr":
            weight = stored.weight.removesuffix(packed(""))
            found[weight] = program.tensor(str(place.target))
    for blocked in block_weights(program):
        if blocked.bias is not None and blocked.bias.op == "get_attr":
            weight = blocked.codes.removesuffix(blocks_of("")[0])
            found[weight] = program.tensor(str(blocked.bias.target))
    return found


def _in_two_steps(made: Program, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch `[batch, length]`, whose second half sees the first through the caches."""
    rows, length = batch["input_ids"].shape
    past = dict(empty_past(made, rows))
    found = []
    # Keys from before a switch of the rotary angles are turned otherwise: both steps lie behind it.
    switch = switch_length(made.source.config)
    cut = length // 2 if switch is None or length <= switch else min(switch + 1, length - 1)
    for start, end in ((0, cut), (cut, length)):
        part = {name: value[:, start:end] for name, value in batch.items()}
        if "attention_mask" in batch:
            part["attention_mask"] = batch["attention_mask"][:, :end]
        logits, *caches = made.run({**part, **past})
        past = dict(zip(past, caches, strict=True))
        found.append(logits)
    return torch.cat(found, 1)


def _verify(made: Program, program: Program) -> None:
    """The variant must give the program's logits on its sample, in two steps through its caches."""
    inputs: Mapping[str, Tensor] = program.sample
    ids = inputs["input_ids"]
    wanted = program.run()[0]
    batch = {name: inputs[name] for name in made.sample if name in inputs}
    found = _in_two_steps(made, batch)
    # What a row of padding gives means nothing.
    real = (
        inputs["attention_mask"].bool()
        if "attention_mask" in inputs
        else torch.ones_like(ids).bool()
    )
    moved = relative_difference(wanted[real], found[real])
    if not moved <= (_ROUNDED_TOLERANCE if is_rounded(program) else _TOLERANCE):
        raise VerifyError(
            f"the program with a cache gives logits that differ by {moved:.1e} of the largest from those "
            "without; export the program without a cache"
        )
