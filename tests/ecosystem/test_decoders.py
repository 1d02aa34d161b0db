"""One folder of onnx-decode: 64 greedy tokens by us, by onnxruntime-genai and by Optimum are the same."""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters.onnx_decode import OnnxDecode
from sparsify import add_kernels, load_onnx, remove_kernels
from sparsify.disk.files import notes, read_json
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.ir.program import Program
from sparsify.pretrained.load import load_tokenizer, source_of
from tests.decoding import MASK, PROMPTS, greedy, unevenly
from tests.environments import answer

pytestmark = pytest.mark.ecosystem

PROGRAMS = Path(__file__).parent / "programs"
TOKENS = 64
PIPELINES = {
    "dense": None,
    "pruned": "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels",
    "packed": "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm",
}
FAMILIES = ("llama", "qwen3", "gpt2", "opt", "gemma")
CASES = [(family, kind) for family in FAMILIES for kind in PIPELINES]
UNEVEN = [("llama", "uneven"), ("gpt2", "uneven")]


@dataclass(frozen=True)
class Case:
    """A written folder and the sequences that must come out of it: of the first prompt, and of all."""

    program: Program
    folder: Path
    alone: Tensor
    padded: Tensor


@pytest.fixture(scope="module")
def case(traced, tmp_path_factory) -> Callable[[str, str], Case]:
    @functools.cache
    def made(family: str, kind: str) -> Case:
        program = traced(family)
        if kind == "uneven":
            program = unevenly(program)
        elif PIPELINES[kind]:
            program = parse(PIPELINES[kind]).run(program)
        program.tokenizer = load_tokenizer(source_of("embedded"))
        folder = write_checked(OnnxDecode(), program, tmp_path_factory.mktemp(f"{family}-{kind}"))
        alone = greedy(program, PROMPTS[:1], MASK[:1], TOKENS)
        return Case(program, folder, alone, greedy(program, PROMPTS, MASK, TOKENS))

    return made


def check_genai(python: Path, folder: Path, item: Case) -> None:
    """The first prompt goes on as it must, and the tokenizer's files mean the same."""
    words = (folder, json.dumps(PROMPTS[:1].tolist()), str(TOKENS))
    said = answer(python, PROGRAMS / "in_genai.py", *words)
    end = read_json(folder / "genai_config.json")["model"].get("eos_token_id")
    assert said["sequences"] == [until_end(item.alone[0].tolist(), end)]
    assert said["ids"] == item.program.tokenizer(said["text"])["input_ids"]
    assert said["text"] == "The function returns a table."


def until_end(ids: list[int], end: int | None) -> list[int]:
    """A sequence as far as the id that ends it, the prompt left out of the search."""
    start = PROMPTS.shape[1]
    return ids[: ids.index(end, start) + 1] if end in ids[start:] else ids


@pytest.mark.parametrize(("family", "kind"), CASES + UNEVEN)
def test_our_session(family, kind, case):
    item = case(family, kind)
    found = load_onnx(item.folder, threads=1)
    assert torch.equal(found.generate(PROMPTS[:1], tokens=TOKENS, stop=-1).ids, item.alone)
    assert torch.equal(found.generate(PROMPTS, mask=MASK, tokens=TOKENS, stop=-1).ids, item.padded)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_what_the_model_writes(family, case, build):
    wanted = build(family).generate(
        PROMPTS,
        attention_mask=MASK,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(wanted, case(family, "dense").padded)


@pytest.mark.parametrize(("family", "kind"), CASES + UNEVEN)
def test_genai(family, kind, case, python):
    item = case(family, kind)
    check_genai(python("genai"), item.folder, item)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_optimum(family, kind, case, python):
    item = case(family, kind)
    words = (json.dumps(PROMPTS.tolist()), json.dumps(MASK.tolist()), str(TOKENS))
    said = answer(python("optimum"), PROGRAMS / "in_optimum.py", item.folder, *words)
    assert said == item.padded.tolist()


def test_caches_of_different_shapes_are_not_for_optimum(case):
    (note,) = notes(case("llama", "uneven").folder)
    assert (
        note == "Optimum does not run this model, since its layers have caches of different shapes"
    )


def test_the_library_goes_where_the_folder_goes(case, python, tmp_path):
    item = case("llama", "packed")
    folder = shutil.copytree(item.folder, tmp_path / "one")
    add_kernels(folder)
    moved = folder.rename(tmp_path / "other")
    (library,) = moved.glob("libsparsify_kernels.*")
    check_genai(python("genai"), moved, item)
    words = (json.dumps(PROMPTS.tolist()), json.dumps(MASK.tolist()), str(TOKENS), library)
    said = answer(python("optimum"), PROGRAMS / "in_optimum.py", moved, *words)
    assert said == item.padded.tolist()
    # The library is what runs: a damaged one is noticed, and without it the folder is as before.
    library.write_bytes(b"no library")
    with pytest.raises(AssertionError, match="libsparsify_kernels"):
        answer(python("genai"), PROGRAMS / "in_genai.py", moved, "[[9, 8]]", "4")
    remove_kernels(moved)
    assert read_json(moved / "genai_config.json") == read_json(item.folder / "genai_config.json")
