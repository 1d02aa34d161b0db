"""SparseGPT 2:4 of single weights by us and by llm-compressor, from the same sums: are they the same?

Whole models need not agree: sums are rounded differently on the way, masks flip, later layers see it. Given
the same weight and the same `sum x x^T` both must choose the same entries. Weights and inputs are drawn,
inputs correlated and of unlike sizes.

    python -m venv peer && peer/bin/pip install llmcompressor
    python benchmarks/pruning_equal.py --peer peer/bin/python
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from child import printed_by
from safetensors.torch import load_file, save_file
from torch import Tensor

# Rows, columns, tokens.
SHAPES = ((256, 256, 8192), (688, 256, 8192), (256, 688, 8192), (1024, 1024, 32768))
DAMPING = 0.01


def drawn() -> dict[str, Tensor]:
    """Weights `w0 [out, in]` and so on, with their sums `g0 [in, in]`."""
    torch.manual_seed(0)
    found = {}
    for number, (rows, columns, tokens) in enumerate(SHAPES):
        mix = torch.randn(columns, columns) / columns**0.5 + 0.7 * torch.eye(columns)
        x = (torch.randn(tokens, columns) @ mix) * (2 * torch.rand(columns) + 0.2)
        found[f"w{number}"] = torch.randn(rows, columns) * 0.05
        found[f"g{number}"] = (x.double().T @ x.double()).float()
    return found


def peer(source: Path, out: Path) -> None:
    """What llm-compressor makes of the weights; runs in its environment."""
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight

    given, found = load_file(source), {}
    for number in range(len(SHAPES)):
        weight = given[f"w{number}"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        sums = {layer: given[f"g{number}"].clone()}
        _, new = sparsify_weight(layer, sums, 0.5, 2, 4, 128, DAMPING, False)
        found[f"w{number}"] = new.detach().contiguous()
    save_file(found, out)


def compare(given: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Print how far ours and theirs are apart, and both errors `|X (W - W')^T|^2 / |X W^T|^2`."""
    from sparsify.tensors.pattern import Pattern
    from sparsify.tensors.sparsegpt import sparsegpt

    for number in range(len(SHAPES)):
        weight, gram = given[f"w{number}"], given[f"g{number}"]
        new, _ = sparsegpt(weight, gram, pattern=Pattern(2, 4), damping=DAMPING)
        other = theirs[f"w{number}"]
        flipped = int(((new != 0) != (other != 0)).sum())
        errors = [size(weight - value, gram) / size(weight, gram) for value in (new, other)]
        print(
            f"{tuple(weight.shape)}: {flipped} of {new.numel()} entries chosen otherwise, "
            f"largest difference {float((new - other).abs().max()):.1e}, "
            f"errors {errors[0]:.8f} and {errors[1]:.8f}"
        )


def size(weight: Tensor, gram: Tensor) -> float:
    """`|X W^T|^2` from the sums."""
    wide = weight.double()
    return float(((wide @ gram.double()) * wide).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="the interpreter of its environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in.safetensors", Path(name) / "out.safetensors"
        given = drawn()
        save_file(given, source)
        words = [options.peer, __file__, str(source), str(out)]
        printed_by("llm-compressor", words)
        compare(given, load_file(out))


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        peer(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
