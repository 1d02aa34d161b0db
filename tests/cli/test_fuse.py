"""`fuse` from the command line: what it writes, says and refuses."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sparsify.ir.features.experts import experts_beside
from sparsify.ir.storage.folder import load


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, two siblings of it, and a model that is none."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    model.save_pretrained(place / "base")
    for seed, name in enumerate(("one", "two")):
        draw = torch.Generator().manual_seed(seed)
        other = GPT2LMHeadModel.from_pretrained(place / "base")
        with torch.no_grad():
            for path, value in other.named_parameters():
                if value.dim() == 2 and path.startswith("transformer.h."):
                    value += 0.1 * torch.randn(value.shape, generator=draw)
            other.transformer.ln_f.weight += seed
        other.save_pretrained(place / name)
    GPT2LMHeadModel(GPT2Config(**{**shape, "n_embd": 16})).save_pretrained(place / "stranger")
    return place


def fuse(cli, folders, out, experts, *more):
    names = ",".join(str(folders / name) for name in experts)
    return cli("fuse", "--base", folders / "base", "--experts", names, "--out", out, *more)


def test_a_program_of_both(cli, folders, tmp_path):
    out = tmp_path / "out"
    code, printed, error = fuse(
        cli,
        folders,
        out,
        ["one", "two"],
        "--rank",
        "4",
        "--gate",
        "2",
        "--json",
        tmp_path / "f.json",
    )
    assert (code, error) == (0, "")
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["base"], figures["parameters"]) == (15712, 21280)
    assert figures["left"][0].startswith("transformer.ln_f.")
    size = sum(path.stat().st_size for path in (out / "safetensors").iterdir())
    assert figures["formats"] == {
        "safetensors": {"folder": str(out / "safetensors"), "bytes": size}
    }
    assert "15,712 parameters -> 21,280 parameters: experts" in printed
    assert (
        "1 other tensors differ and stay as the base has them, transformer.ln_f.weight" in printed
    )
    assert len(experts_beside(load(out / "safetensors"))) == 4
    code, _, error = fuse(cli, folders, out, ["one"])
    assert code == 1
    assert error.endswith(f"the folder '{out}' is not empty; choose another or give --overwrite\n")


@pytest.mark.parametrize(
    ("experts", "more", "sentence"),
    [
        (
            ["one", "stranger"],
            [],
            "sibling 2 is none: 'transformer.wpe.weight' is [32, 32] in the base",
        ),
        (["one"], ["--top", "2"], "top=2 is more than the 1 siblings"),
        (["one"], ["--gate", "0"], "gate=0 must be at least 1"),
        (["one"], ["--rank", "-3"], "rank=-3 must be at least 1"),
        (["one"], ["--others", "all"], "--others is 'base' or 'mean', not 'all'"),
        (["one"], ["--to", "onx"], "no exporter is called 'onx'"),
        (["nobody"], [], "there is no folder"),
    ],
)
def test_what_is_refused(experts, more, sentence, cli, folders, tmp_path):
    out = tmp_path / "out"
    code, printed, error = fuse(cli, folders, out, experts, *more)
    assert (code, printed) == (1, "")
    assert error.count("\n") == 1
    assert sentence in error
    assert not out.exists()
