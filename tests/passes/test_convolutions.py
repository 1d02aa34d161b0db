"""Masks of convolutions: put in, chosen, moved and folded; refused where they could not be."""

import math

import pytest
import torch
from torch import nn

from sparsify.data.sequences import TensorData
from sparsify.describe.count import count
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.convolution import convolutions
from sparsify.runtime.session import onnxruntime_session

ALL = "weights,convolutions"
ONLY, CHOSEN = "insert-masks{of=convolutions}", "choose-masks{of=convolutions"


class Small(nn.Module):
    """`pixels [batch, 2, 6, 6]` -> `[batch, 3]`: plain, in groups, and with `same` padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 8, 3, padding="same", groups=2, bias=False)
        self.inner, self.head = nn.Linear(72, 5), nn.Linear(5, 3)

    def forward(self, pixels):
        x = torch.relu(self.second(torch.relu(self.first(pixels))))
        x = torch.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.inner(x)))


@pytest.fixture(scope="module")
def traced_once():
    torch.manual_seed(0)
    return trace(Small(), {"pixels": torch.randn(3, 2, 6, 6)}, {"pixels": {0: "batch"}})


@pytest.fixture
def small(traced_once):
    return traced_once.clone()


@pytest.fixture(scope="module")
def images():
    """Which third of the picture is brightest, seen through noise."""
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (96,), generator=draw)
    pixels = 0.3 * torch.randn(96, 2, 6, 6, generator=draw)
    for number, label in enumerate(labels.tolist()):
        pixels[number, :, 2 * label : 2 * label + 2] += 1
    return TensorData({"pixels": pixels, "labels": labels})


def run(program, pipeline, data=None):
    context = Context(data=data, seed=0)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


def test_they_are_found_with_their_masks(small):
    assert [view.weight for view in convolutions(small)] == ["first.weight", "second.weight"]
    assert [view.mask for view in convolutions(small)] == [None, None]
    run(small, "insert-masks{of=convolutions}")
    masks = [view.mask for view in convolutions(small)]
    assert masks == ["first.weight_convolution_mask", "second.weight_convolution_mask"]
    assert [tuple(small.tensor(m).shape) for m in masks] == [(4, 2, 3, 3), (8, 2, 3, 3)]
    assert small.features == {"mask.convolutions"}


def test_insert_and_fold_give_the_text_back(small):
    text, before = to_text(small), small.run()[0]
    run(small, f"insert-masks{{of={ALL}}} | fold-masks{{of={ALL}}}")
    assert to_text(small) == text
    assert torch.equal(small.run()[0], before)


@pytest.mark.parametrize("scope", ["row", "layer", "global"])
def test_a_sparsity_is_reached_within_its_scope_and_folds_to_zeros(scope, small, tmp_path):
    weights = {
        view.weight: small.tensor(view.weight).detach().clone() for view in convolutions(small)
    }
    chosen = f"insert-masks{{of=convolutions}} | choose-masks{{of=convolutions sparsity=0.7 scope={scope}}}"
    run(small, chosen)
    kept = {view.weight: small.tensor(view.mask) for view in convolutions(small)}
    zeros = {path: int((~mask).sum()) for path, mask in kept.items()}
    if scope == "row":
        for mask in kept.values():
            assert (~mask).flatten(1).sum(1).unique().tolist() == [math.floor(18 * 0.7)]
    elif scope == "layer":
        assert list(zeros.values()) == [math.floor(72 * 0.7), math.floor(144 * 0.7)]
    else:
        assert sum(zeros.values()) == math.floor(216 * 0.7)
        smallest = min(float(weights[p].abs()[m].min()) for p, m in kept.items())
        assert all(float(weights[p].abs()[~m].max()) <= smallest for p, m in kept.items())
    assert count(small).zeros == sum(zeros.values())
    before, masked = small.run()[0], {path: weights[path] * mask for path, mask in kept.items()}
    save(small, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").run()[0], before)
    run(small, "fold-masks{of=convolutions}")
    for path, value in masked.items():
        assert torch.equal(small.tensor(path), value), path
    assert count(small).zeros == sum(zeros.values())
    assert torch.allclose(small.run()[0], before, atol=1e-6)


def test_dpf_trains_them_with_the_linears_and_onnx_says_the_same(small, images, tmp_path):
    moving = f"masks=every{{steps=8 sparsity=0.6 schedule=cubic until=0.7 of={ALL}}}"
    _, rows = run(
        small, f"insert-masks{{of={ALL}}} | train{{steps=80 batch=16 lr=0.01 {moving}}}", images
    )
    masks = [value for path, value in small.tensors() if path.endswith("_mask")]
    size = sum(mask.numel() for mask in masks)
    assert size == 72 + 144 + 72 * 5
    assert sum(int((~mask).sum()) for mask in masks) == math.floor(size * 0.6)
    assert sum(row.get("reactivated", 0) for row in rows) > 0
    run(small, f"fold-masks{{of={ALL}}}")
    batch = images.batch(range(96))
    logits = small.run({"pixels": batch["pixels"]})[0]
    assert float((logits.argmax(1) == batch["labels"]).float().mean()) > 0.9
    folder = export(small, tmp_path, ["onnx"])["onnx"]
    session = onnxruntime_session(folder / "model.onnx")
    (given,) = session.run(None, {"pixels": batch["pixels"][:7].numpy()})
    assert torch.allclose(torch.from_numpy(given), logits[:7], atol=1e-4)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean(-1)) + self.conv.weight.sum()


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (
            f"{ONLY.replace('}', ' targets=frist}')}",
            "the target 'frist' matches no convolution; did",
        ),
        (f"{ONLY} | {CHOSEN} pattern=2:4}}", "a pattern or score=sparsegpt is for weights"),
        (f"{ONLY} | {CHOSEN} sparsity=0.5 score=taylor}}", "score=taylor is not for convolutions"),
        (f"{ONLY} | train{{steps=2 masks=every{{of=convolutions}}}}", "a pattern is for weights"),
        (
            "insert-masks | train{steps=2 masks=every{of=convolutions sparsity=0.5}}",
            "needs ['mask.convolutions']",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(pipeline, sentence, small, images):
    with pytest.raises(SparsifyError) as caught:
        run(small, pipeline, images)
    assert sentence in str(caught.value)


def test_a_program_without_them_and_a_weight_with_another_reader(traced):
    with pytest.raises(SparsifyError, match="the program has no convolution"):
        run(traced("mlp"), "insert-masks{of=convolutions}")
    program = trace(Shared(), {"x": torch.randn(3, 2, 5)}, {"x": {0: "batch"}})
    with pytest.raises(SparsifyError, match=r"@conv.weight is no weight of convolutions alone"):
        run(program, "insert-masks{of=convolutions}")


class HeadAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, pixels):
        return self.head(self.seen(pixels).amax((-2, -1)))


def test_a_head_alone_is_nothing_to_mask():
    program = trace(
        HeadAlone().eval(), {"pixels": torch.randn(2, 1, 8, 8)}, {"pixels": {0: "batch"}}
    )
    with pytest.raises(OptionError, match=r"of=weights finds nothing to mask.*name it"):
        run(program, "insert-masks{of=weights,convolutions}")
    run(program, "insert-masks{targets=head.weight} | insert-masks{of=convolutions}")
    assert program.features == {"mask.weights", "mask.convolutions"}
