"""Before and after texts of small programs: a reviewer reads the difference of `tests/golden`.

`GOLDEN=write` writes the files anew and fails once, so that a rewrite is always seen.
"""

import os
from pathlib import Path

import pytest
import torch

import passes
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.text import header, to_text

FOLDER = Path(__file__).parent / "golden"
# File -> the program, what runs before the first text, and the run that the file shows.
CASES = {
    "insert-probes": ("mlp", "", "insert-probes{gram=true}"),
    "remove-probes": ("mlp", "insert-probes", "remove-probes"),
    "insert-masks": ("mlp", "", "insert-masks"),
    "insert-masks-groups": ("block", "", "insert-masks{of=channels,heads}"),
    "insert-masks-convolutions": ("window", "", "insert-masks{of=convolutions}"),
    "fold-masks-convolutions": (
        "window",
        "insert-masks{of=convolutions} | choose-masks{of=convolutions sparsity=0.5}",
        "fold-masks{of=convolutions}",
    ),
    "fold-masks": ("mlp", "insert-masks | choose-masks{pattern=2:4}", "fold-masks"),
    "insert-lora": ("mlp", "insert-masks", "insert-lora{rank=2}"),
    "insert-lora-transposed": ("conv", "", "insert-lora{rank=2} | insert-masks"),
    "insert-slorb": (
        "mlp",
        "insert-masks{targets=down} | choose-masks{pattern=2:4 targets=down}",
        "insert-slorb{k=4 targets=down}",
    ),
    "insert-bias": ("mlp", "insert-masks{of=channels}", "insert-bias{of=channels}"),
    "insert-bias-transposed": (
        "conv",
        "insert-masks",
        "insert-bias{of=weights}",
    ),
    "fold-bias": ("mlp", "insert-masks{of=channels} | insert-bias{of=channels}", "fold-bias"),
    "insert-scales": ("mlp", "insert-masks", "insert-scales"),
    "insert-scales-transposed": ("conv", "", "insert-scales | insert-masks"),
    "fold-scales": ("mlp", "insert-masks | insert-scales", "fold-scales"),
    "insert-quantizers": (
        "mlp",
        "insert-masks{targets=down}",
        "insert-quantizers{values=int4 group=32 targets=down}",
    ),
    "insert-quantizers-transposed": (
        "conv",
        "",
        "insert-quantizers | insert-masks | insert-lora{rank=2}",
    ),
    "insert-adapters": (
        "mlp",
        "insert-quantizers{group=32 targets=down}",
        "insert-adapters{ratio=0.3 targets=down}",
    ),
    "fold-adapters": ("mlp", "insert-adapters{ratio=0.3 targets=down}", "fold-adapters"),
    "insert-neighbours": ("mlp", "", "insert-neighbours{size=6 k=2}"),
    "insert-prompt": ("routed", "", "insert-prompt{tokens=3}"),
    "fold-prompt": ("routed", "insert-prompt{tokens=3} | choose-prompt", "fold-prompt"),
    "insert-experts": ("mlp", "", "insert-experts{experts=3 rank=2 scale=0.5}"),
    "merge-experts": ("alike", "", "merge-experts"),
    "fold-quantizers": (
        "mlp",
        "insert-quantizers{activations=false group=32} | choose-scales",
        "fold-quantizers",
    ),
    "remove-quantizers": ("mlp", "insert-quantizers", "remove-quantizers"),
    "split-linears": ("mlp", "choose-tensors{rank=2}", "split-linears"),
    "split-linears-shared": (
        "block",
        "choose-tensors{stack=attention rank=2 ignore=out}",
        "split-linears",
    ),
    "split-linears-transposed": ("conv", "choose-tensors{stack=one rank=2}", "split-linears"),
    "pack-nm": ("mlp", "insert-masks | choose-masks{pattern=2:4} | fold-masks", "pack-nm"),
    "pack-nm-int8-transposed": (
        "conv",
        "insert-masks | choose-masks{pattern=2:4} | fold-masks | insert-quantizers | choose-scales",
        "pack-nm{values=int8}",
    ),
    "pack-dense": (
        "block",
        "insert-quantizers{values=int4 group=32 ends=true} | choose-scales",
        "pack-dense",
    ),
    "pack-dense-transposed": (
        "conv",
        "insert-quantizers{values=int4 group=32 ends=true} | choose-scales",
        "pack-dense",
    ),
    "fold-lora": ("mlp", "insert-masks | insert-lora{rank=2}", "fold-lora"),
    "insert-omission": ("block", "", "insert-omission{multiple=4}"),
    "insert-omission-zero": ("mlp", "", "insert-omission{of=channels multiple=4 form=zero}"),
    "remove-omission": ("block", "insert-omission{multiple=4}", "remove-omission"),
    "prune-heads": (
        "block",
        "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5}",
        "prune-heads",
    ),
    "insert-masks-layers": ("block", "", "insert-masks{of=layers,blocks}"),
    "insert-masks-hidden": ("routed", "", "insert-masks{of=hidden}"),
    "insert-masks-experts": ("routed", "", "insert-masks{of=experts,channels}"),
    "prune-experts": (
        "routed",
        "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5}",
        "prune-experts",
    ),
    "prune-hidden": (
        "block",
        "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.25}",
        "prune-hidden",
    ),
    "prune-layers": (
        "block",
        "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.5}",
        "prune-layers{of=blocks}",
    ),
    "prune-channels": (
        "mlp",
        "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5}",
        "prune-channels",
    ),
}


def show(program):
    sizes = "\n".join(
        f"  @{path} : {list(value.shape)}" for path, value in sorted(program.tensors())
    )
    return f"{header(program)}\n{to_text(program)}{sizes}\n"


def _alike(program):
    """A mixture whose experts are the same two by two, as choose-clusters leaves them."""
    with torch.no_grad():
        for path, value in program.tensors():
            if value.dim() == 3:
                value[1::2] = value[::2]
            if value.dim() == 2 and len(value) == 6:
                program.plan["clusters"] = {path: [0, 0, 1, 1, 2, 2]}
    program.features |= {"clusters"}
    return program


@pytest.fixture
def start(traced):
    def make(name):
        if name == "alike":
            return _alike(traced("routed"))
        if name not in ("conv", "window"):
            return traced(name)
        from sparsify.ir.trace.trace import trace

        if name == "window":
            window = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3, groups=2), torch.nn.Tanh())
            with torch.no_grad():
                for value in window.parameters():
                    value.copy_(torch.linspace(-1, 1, value.numel()).view_as(value))
            return trace(window, {"input": torch.ones(2, 4, 5)}, {"input": {0: "batch"}})

        class Conv(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 32).reshape(4, 8))
                self.bias = torch.nn.Parameter(torch.ones(8))

            def forward(self, x):
                return torch.addmm(self.bias, x, self.weight).tanh()

        return trace(Conv(), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}})

    return make


@pytest.mark.parametrize("case", CASES)
def test_golden(case, start):
    name, before, pipeline = CASES[case]
    program = parse(before).run(start(name)) if before else start(name)
    found = [f"# run: {pipeline}", "", show(program)]
    parse(pipeline).run(program, Context())
    text = "\n".join([*found, show(program)])
    path = FOLDER / f"{case}.txt"
    if os.environ.get("GOLDEN") == "write":
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        assert not changed, f"{path.name} was written; look at it and run again"
    assert path.read_text(encoding="utf-8") == text


def test_every_structural_pass_has_a_golden_and_every_golden_a_case():
    # A permutation moves tensors alone: its text before and after is one.
    structural = {p.name for p in passes.ALL if p.moves.graph} - {"permute-channels"}
    run = {str(p.name) for _, _, pipeline in CASES.values() for p in parse(pipeline).passes}
    assert structural <= run
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)
