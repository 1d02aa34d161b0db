"""The zoo: every removable axis of every architecture, masked and removed alike, here and in ONNX Runtime.

The table of `docs/zoo.md` is made of what these tests find. `ZOO=write` writes it anew and fails once, so
that a change is always seen.
"""

import os
from functools import cache
from pathlib import Path

import pytest

from exporters.onnx import Onnx
from passes.choose_masks import ChooseMasks
from passes.insert_masks import InsertMasks
from sparsify.engine.contract import Context
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.axes.summary import rows
from sparsify.ir.axes.walk import analyse
from sparsify.tensors.precision import largest_difference
from tests.ir.axes.families import traced
from tests.ir.axes.masked import batches, outputs

PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
NAMES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma 2",
    "gemma3": "Gemma 3", "phi3": "Phi-3", "gpt2": "GPT-2", "gpt-neox": "GPT-NeoX", "opt": "OPT",
    "bert": "BERT", "roberta": "RoBERTa", "distilbert": "DistilBERT", "vit": "ViT", "t5": "T5",
    "mixtral": "Mixtral", "qwen2-moe": "Qwen2-MoE", "qwen3-moe": "Qwen3-MoE",
}  # fmt: skip
KINDS = ("heads", "channels", "experts", "hidden", "layers", "blocks")
PRUNE = {
    "heads": "prune-heads", "channels": "prune-channels", "experts": "prune-experts",
    "hidden": "prune-hidden", "layers": "prune-layers", "blocks": "prune-layers{of=blocks}",
}  # fmt: skip
# What an architecture lacks by its nature, or cannot lose, and the reason.
MISSING = {"t5": {"hidden": "graph output"}}
ROUTED = ("mixtral", "qwen2-moe", "qwen3-moe")


@cache
def kinds(family):
    """The kinds that the family can lose, and a sentence for each that it cannot."""
    program, free, pinned = traced(family), [], {}
    for kind in KINDS:
        try:
            InsertMasks(of=(kind,)).check(program)
            free.append(kind)
        except OptionError as error:
            pinned[kind] = str(error)
    return free, pinned


def masked(program, chosen):
    """Masks of some kinds, each chosen by weight norm."""
    context = Context()
    InsertMasks(of=tuple(chosen)).rewrite(program, context)
    for kind in chosen:
        count = 64 if kind == "hidden" else 0
        part = 0.25 if count else 0.5
        ChooseMasks(of=(kind,), sparsity=part).rewrite(program, context)
    program.module.recompile()
    program.features |= {f"mask.{kind}" for kind in chosen}
    return program


@pytest.mark.parametrize("family", NAMES)
def test_the_zoo_has_these_axes(family):
    _, pinned = kinds(family)
    missing = set() if family in ROUTED else {"experts"}
    missing |= MISSING.get(family, {}).keys()
    assert set(pinned) == missing
    for kind, reason in MISSING.get(family, {}).items():
        assert reason in pinned[kind]


@pytest.mark.parametrize("family", NAMES)
def test_masked_equals_pruned_kind_by_kind(family):
    dense = traced(family)
    wanted = outputs(dense, dense.module)
    for kind in kinds(family)[0]:
        program = masked(dense.clone(), [kind])
        expected = outputs(program, program.module)
        (step,) = parse(PRUNE[kind]).passes
        assert step.rewrite(program, Context()) > 0
        assert largest_difference(outputs(program, program.module), expected) <= 1e-5, kind
        assert largest_difference(expected, wanted) > 1e-3, kind
        assert size(program) < size(dense), kind


@pytest.mark.parametrize("apart", [False, True], ids=["together", "blocks"])
@pytest.mark.parametrize("family", NAMES)
def test_masked_equals_pruned_in_onnx_runtime(family, apart, tmp_path):
    """All kinds at once; blocks apart, since what is left of one layer of two would be too little."""
    chosen = [kind for kind in kinds(family)[0] if (kind == "blocks") == apart]
    program = masked(traced(family), chosen)
    expected = [program.run(batch) for batch in batches(program)]
    order = sorted(chosen, key=lambda kind: kind != "layers")
    parse(" | ".join(PRUNE[kind] for kind in order)).run(program, Context())
    assert not program.features
    read = Onnx().read_back(program, write_checked(Onnx(), program, tmp_path))
    for batch, outputs_ in zip(batches(program), expected, strict=True):
        found = read(batch)
        assert largest_difference(list(found), list(outputs_)) <= 1e-5


HEAD = """<!-- Written by tests/test_zoo.py (ZOO=write); do not edit. -->

# The zoo

Which axes each architecture has, found in its graph by the rules of [axes](axes.md). The models are small and
random, of two layers. A number says what the axis has here: `8 = 4 x 2` are 8 query heads in 4 KV groups. For
each one the tests remove a half (a quarter of the hidden size) and hold the masked program against the
pruned one: the outputs agree within 1e-5, kind by kind in torch, and in ONNX Runtime blocks alone and all
other kinds together. `layers` are whole layers, `blocks` the attention and feed-forward blocks in them. The
sizes of heads (`head_dim`, `rotary`) are free in most, but no pass removes them.

| architecture | {kinds} | not removable, and why |
|---|{lines}---|
"""


def page():
    """The table of the zoo as text."""
    lines = [HEAD.format(kinds=" | ".join(KINDS), lines="---|" * len(KINDS))]
    for family, name in NAMES.items():
        found = rows(analyse(traced(family)))
        cells = [cell([r for r in found if r.kind == kind and not r.pins]) for kind in KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} | {reasons(found)} |\n")
    return "".join(lines)


def reasons(found):
    """Why the other axes stay: each reason once, with the kinds of axes, or the modules of plain ones."""
    why = {}
    for row in found:
        if row.pins:
            names = row.where if row.kind == "other" else (row.kind,)
            why.setdefault(", ".join(row.pins), {}).update(dict.fromkeys(names))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())


def cell(found):
    """The sizes of an axis, or how many layers there are."""
    sizes = [row.size or str(row.count) for row in found]
    return ", ".join(dict.fromkeys(sizes)) or "none"


def size(program):
    return sum(value.numel() for value in program.module.parameters())


def test_page():
    text = page()
    if os.environ.get("ZOO") == "write":
        changed = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        PAGE.write_text(text, encoding="utf-8")
        assert not changed, "docs/zoo.md was written; look at it and run again"
    assert PAGE.read_text(encoding="utf-8") == text
