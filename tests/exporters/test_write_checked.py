"""An export is whole and equal, or it is not there and what stood there still stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from exporters import ALL
from exporters.safetensors import Safetensors
from sparsify.describe.facts import FILE
from sparsify.engine.compare import second_batch
from sparsify.engine.contract import Exporter
from sparsify.engine.export import (
    EVERY_FEATURE,
    write_checked,
)
from sparsify.errors import ExportError
from sparsify.ir.storage.folder import load
from sparsify.pretrained.origin import CARD


@dataclass(frozen=True)
class Fake(Exporter):
    """Reads back the program's own outputs, off by `error` on other than 13 tokens."""

    name: ClassVar[str] = "fake"
    accepts: ClassVar[frozenset[str]] = frozenset({"probe"})
    tolerance: ClassVar[float] = 1e-3

    error: float = 0.0
    breaks: str = ""

    def write(self, program, folder):
        (folder / "file").write_text("new")
        if self.breaks == "write":
            raise OSError(28, "No space left on device")

    def read_back(self, program, folder):
        assert (folder / "file").read_text() == "new"

        def run(inputs):
            if self.breaks == "run":
                raise RuntimeError("no such op\nand more")
            off = 0.0 if inputs["input_ids"].shape[1] == 13 else self.error
            return tuple(out + off * out.abs().max() for out in program.run(inputs))

        return run


def tree(folder: Path) -> dict[str, str]:
    """The files of the format; the card and the figures beside it are left out."""
    files = {p: p.read_text() for p in folder.rglob("*") if p.is_file()}
    return {str(p.relative_to(folder)): t for p, t in files.items() if p.name not in (CARD, FILE)}


@pytest.fixture
def program(programs):
    return programs("bert_classifier")


def test_new_export(program, tmp_path):
    folder = tmp_path / "a" / "b"
    assert write_checked(Fake(error=1e-4), program, folder) == folder / "fake"
    assert tree(tmp_path) == {"a/b/fake/file": "new"}
    assert [p.name for p in folder.iterdir()] == ["fake"]


@pytest.mark.parametrize(
    ("fake", "sentence"),
    [
        (
            Fake(error=0.02),
            "fake was written, but read back it gives another logits of a second batch: "
            "the difference is 0.02 of the largest value, allowed is 0.001",
        ),
        (
            Fake(error=float("nan")),
            "fake was written, but read back it gives another logits of a second batch: "
            "the difference is inf of the largest value, allowed is 0.001",
        ),
        (Fake(breaks="run"), "fake was written but does not run on the sample batch: no such op"),
        (Fake(breaks="write"), "No space left on device"),
    ],
)
def test_failure_leaves_nothing(fake, sentence, program, tmp_path):
    with pytest.raises(ExportError) as caught:
        write_checked(fake, program, tmp_path / "a" / "b")
    assert str(caught.value).endswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fake", [Fake(error=0.02), Fake(breaks="run"), Fake(breaks="write")])
def test_failure_leaves_the_old_one(fake, program, tmp_path):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "file").write_text("old")
    with pytest.raises(ExportError):
        write_checked(fake, program, tmp_path, overwrite=True)
    assert tree(tmp_path) == {"fake/file": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["fake"]


def test_taken_place(program, tmp_path):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "other").write_text("old")
    with pytest.raises(ExportError, match="--overwrite"):
        write_checked(Fake(), program, tmp_path)
    assert tree(tmp_path) == {"fake/other": "old"}
    write_checked(Fake(), program, tmp_path, overwrite=True)
    assert tree(tmp_path) == {"fake/file": "new"}


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (
            {"lora", "mask.weights"},
            "fake cannot hold lora, mask.weights; add fold-lora | fold-masks",
        ),
        ({"mask.heads", "probe"}, "fake cannot hold mask.heads; add prune-heads"),
        ({"strange"}, "fake cannot hold strange; export to safetensors"),
    ],
)
def test_features(features, sentence, program, tmp_path):
    program.features = frozenset(features)
    with pytest.raises(ExportError) as caught:
        write_checked(Fake(), program, tmp_path)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("export to safetensors")


def test_accepted_features(program, tmp_path):
    program.features = frozenset({"probe", "stats"})
    write_checked(Fake(), program, tmp_path)


def test_second_batch(programs):
    program = programs("llama")
    batch = second_batch(program)
    assert {value.shape for value in batch.values()} == {(3, 12)}
    assert batch["attention_mask"].sum() == 35
    assert torch.equal(batch["position_ids"], torch.arange(12).expand(3, 12))
    assert not torch.equal(batch["input_ids"][:2], program.sample["input_ids"][:, :12])


def test_safetensors_holds_everything(programs, tmp_path, tokenizer):
    program = programs("gpt2")
    program.tokenizer = tokenizer
    assert Safetensors.accepts == EVERY_FEATURE
    folder = write_checked(Safetensors(), program, tmp_path)
    loaded = load(folder)
    assert loaded.log == ["said{so=true}"]
    assert all(torch.equal(loaded.tensor(path), value) for path, value in program.tensors())
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_catalogue():
    assert [item.name for item in ALL] == ["safetensors", "onnx", "onnx-decode", "huggingface"]
    for item in ALL:
        assert str(item()) == item.name
        assert item.__doc__
