"""DPF on pictures: a small convolutional network for handwritten digits with a tenth of its weights, as ONNX.

python examples/prune_digits.py --out DIR [--steps 400] [--sparsity 0.9]

The digits are scikit-learn's, 1797 pictures of 8 x 8 (pip install 'sparsify-fx[experts]').
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparsify import Context, Program, export, onnxruntime_session, parse, trace
from sparsify.data.sequences import Part, TensorData, order

KINDS = "weights,convolutions"
TRAINED_ON = 1297


class DigitNet(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> logits `[batch, 10]`: three convolutions and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 64, 3, padding=1)
        self.inner = nn.Linear(64 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        x = torch.relu(self.first(pixels))
        x = torch.max_pool2d(torch.relu(self.second(x)), 2)
        x = torch.max_pool2d(torch.relu(self.third(x)), 2)
        return self.head(torch.relu(self.inner(x.flatten(1))))


def digits() -> tuple[Part, Part]:
    """Pictures to train on and others to test on, pixels from 0 to 1, always in the same order."""
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    mixed = order(len(pixels), seed=0, epoch=0)
    data = TensorData({"pixels": pixels[mixed], "labels": torch.tensor(found.target)[mixed]})
    return Part(data, 0, TRAINED_ON), Part(data, TRAINED_ON, len(data))


def fresh(seed: int) -> Program:
    """An untrained network, traced."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trace(DigitNet(), {"pixels": torch.rand(2, 1, 8, 8)}, {"pixels": {0: "batch"}})


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of pictures whose largest logit is the right one."""
    return float((logits.argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()

    learnt, test = digits()
    batch = test.batch(range(len(test)))
    pixels, labels = {"pixels": batch["pixels"]}, batch["labels"]
    every = max(1, min(16, options.steps // 4))
    how = f"steps={options.steps} batch=64 lr=0.003"
    moving = f"masks=every{{steps={every} sparsity={options.sparsity} schedule=cubic until=0.75 of={KINDS}}}"

    dense = parse(f"train{{{how}}}").run(fresh(0), Context(data=learnt))
    print(f"dense: {accuracy(dense.run(pixels)[0], labels):.1%}")
    program = parse(f"insert-masks{{of={KINDS}}} | train{{{how} {moving}}}").run(
        fresh(0), Context(data=learnt)
    )
    program = parse(f"fold-masks{{of={KINDS}}}").run(program)
    print(f"DPF at {options.sparsity:.0%}: {accuracy(program.run(pixels)[0], labels):.1%}")

    folder = export(program, options.out, ["onnx"])["onnx"]
    session = onnxruntime_session(folder / "model.onnx")
    (logits,) = session.run(None, {"pixels": batch["pixels"].numpy()})
    print(f"onnx: {accuracy(torch.from_numpy(logits), labels):.1%}, {folder}")


if __name__ == "__main__":
    main()
