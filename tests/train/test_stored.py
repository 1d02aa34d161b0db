"""Logits of the dense twin on disk: what is read is what the twin says, and nothing else is taken for it."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from sparsify.data.sequences import TextData
from sparsify.engine import stored_twin
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import OptionError
from sparsify.train import stored
from sparsify.train.losses import kl, kl_of_top
from sparsify.train.top_logits import top_logits

STEPS = "steps=3 batch=2 accumulate=2 lr=0.001 task=0.3"
WHOLE = 10**6  # as many logits as there are


def data(seed=0, count=8):
    draw = torch.Generator().manual_seed(seed)
    return TextData(torch.randint(0, 300, (count * 12,), generator=draw), 12)


def text(folder=None, top=WHOLE, temperature=2.0, how=STEPS):
    where = "" if folder is None else f" stored={folder} top={top}"
    distill = f"kl{{weight=0.7 temperature={temperature}{where}}}"
    return f"insert-masks | choose-masks{{pattern=2:4}} | train{{{how} distill={distill}}}"


def trained(program, line, given=None):
    """Figures of the steps, the notes and the trained program."""
    program, context = program.clone(), Context(data=given or data(), seed=0)
    pipeline = parse(line)
    report = Report()
    program = pipeline.run(program, context, report=report)
    return context.figures["train"], report.rows[-1].note, program


@pytest.fixture
def program(traced):
    return traced("llama")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_logits_give_the_divergence_and_fewer_give_less(temperature):
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 5, 40, generator=draw, dtype=torch.float64).float()
    exact = kl(student, teacher, temperature)
    before = torch.zeros(3, 5)
    for top in (1, 8, 39, 40):
        found = top_logits(teacher, top, temperature)
        assert torch.allclose(
            found.logs.exp().sum(-1) + found.rest.exp(), torch.ones(3, 5), atol=1e-6
        )
        value = kl_of_top(student, found.ids, found.logs, found.rest, temperature)
        assert (value >= before - 1e-5).all()
        assert (value <= exact + 1e-5).all()
        before = value
    assert torch.allclose(before, exact, atol=1e-5)


def test_one_logit_by_hand():
    """p = (0.7, 0.2, 0.1), q = (0.5, 0.25, 0.25): 0.7 log(0.7 / 0.5) + 0.3 log(0.3 / 0.5)."""
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    found = top_logits(p[None], 1, 1.0)
    value = kl_of_top(q[None], found.ids, found.logs, found.rest, 1.0)
    assert value.item() == pytest.approx(0.7 * np.log(1.4) + 0.3 * np.log(0.6), abs=1e-6)


@pytest.mark.parametrize("top", [3, WHOLE])
def test_gradients_are_those_of_the_formula(top):
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 20, generator=draw)
    student.requires_grad_()
    found = top_logits(teacher, top, 1.0)
    kl_of_top(student, found.ids, found.logs, found.rest, 1.0).sum().backward()
    q, p = functional.softmax(student.detach(), -1), functional.softmax(teacher, -1)
    # Entries that count as one share its pull by their part of it.
    known = torch.zeros_like(p).scatter(-1, found.ids, 1.0).bool()
    rest = torch.where(known, 0.0, q)
    share = rest / rest.sum(-1, keepdim=True).clamp(min=1e-9)
    wanted = torch.where(known, p, share * torch.where(known, 0.0, p).sum(-1, keepdim=True))
    assert torch.allclose(student.grad, q - wanted, atol=1e-5)


def test_a_run_with_all_logits_is_the_run_with_the_twin(program, tmp_path):
    with_twin, _, _ = trained(program, text())
    written, note, first = trained(program, text(tmp_path / "logits"))
    assert "8 sequences are read from 'logits'; 8 of them were written, 0.1 MB" in note
    for one, other in zip(with_twin, written, strict=True):
        assert other["distill"] == pytest.approx(one["distill"], rel=2e-3)
        assert other["task"] == pytest.approx(one["task"], rel=2e-3)
    read, note, second = trained(program, text(tmp_path / "logits"))
    assert "0 of them were written" in note
    assert [row["loss"] for row in read] == [row["loss"] for row in written]
    for (name, one), (_, other) in zip(first.tensors(), second.tensors(), strict=True):
        assert torch.equal(one, other), name


def test_whole_outputs_give_what_chunks_give(program, tmp_path, monkeypatch):
    in_chunks, _, _ = trained(program, text(tmp_path / "logits", top=20))
    for module in ("sparsify.train.objective", "sparsify.train.stored", "sparsify.train.forward"):
        monkeypatch.setattr(f"{module}.find_head", lambda program: None)
    whole, _, _ = trained(program, text(tmp_path / "others", top=20))
    assert [row["loss"] for row in whole] == pytest.approx([r["loss"] for r in in_chunks], rel=1e-4)


def test_a_whole_store_needs_no_twin(program, tmp_path, monkeypatch):
    line = text(tmp_path / "logits", top=8)
    assert "dense" in parse(line).passes[-1].effect().wants
    trained(program, line)
    assert "dense" not in parse(line).passes[-1].effect().wants
    monkeypatch.setattr(stored_twin, "Teacher", None)
    figures, _, _ = trained(program, line)
    assert len(figures) == 3


def test_only_what_is_missing_is_made(program, tmp_path, monkeypatch):
    folder = tmp_path / "logits"
    given = data(count=20)
    trained(program, text(folder, top=8), given)
    there = np.load(folder / "there.npy")
    assert there.sum() == 12  # three steps of four
    asked = []
    side = stored.Teacher.side
    monkeypatch.setattr(
        stored.Teacher, "side", lambda s, b, d: asked.append(len(b["input_ids"])) or side(s, b, d)
    )
    trained(program, text(folder, top=8, how=STEPS.replace("steps=3", "steps=5")), given)
    assert sum(asked) == 8
    assert stored.is_whole(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"top": 9}, "top: 8, not 9"),
        ({"temperature": 1.0}, "temperature: 2.0, not 1.0"),
        ({"given": 1}, "data: "),
        ({"given": 2}, "sequences: 8, not 9"),
        ({"model": True}, "twin: "),
    ],
    ids=["top", "temperature", "data", "sequences", "twin"],
)
def test_logits_of_something_else_are_refused(change, what, program, tmp_path):
    folder = tmp_path / "logits"
    given = data(count=9) if change.get("given") == 2 else None
    # Not all of it: then the twin is there to be compared.
    how = STEPS.replace("steps=3", "steps=1")
    trained(program, text(folder, top=8, how=how))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = {key: change[key] for key in ("top", "temperature") if key in change}
    if change.get("given") == 1:
        given = data(seed=5)
    if "model" in change:
        program = program.clone()
        with torch.no_grad():
            program.tensor("model.norm.weight").add_(1e-3)
    with pytest.raises(OptionError, match=f"holds logits of another {what}"):
        trained(program, text(folder, **{"top": 8, "how": how, **options}), given)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_a_twin_nothing_can_be_made(program, tmp_path):
    folder = tmp_path / "logits"
    line = text(folder, top=8)
    trained(program, line, data(count=12))
    item = parse(line).passes[-1]
    np.save(folder / "there.npy", np.zeros(12, np.uint8))
    masked = parse("insert-masks | choose-masks{pattern=2:4}").run(program.clone(), Context())
    with pytest.raises(
        OptionError, match="lacks the logits of 12 sequences, and there is no dense"
    ):
        item.rewrite(masked, Context(data=data(count=12), seed=0))


def test_a_rank_does_its_part_of_what_all_have_seen(program, tmp_path, monkeypatch):
    """Another rank may have written some of its own by the time that this one begins."""
    line = text(tmp_path / "logits", top=8, how=STEPS.replace("steps=3", "steps=1"))
    trained(program, line, data(count=20))
    about = json.loads((tmp_path / "logits" / stored.ABOUT).read_text())
    store = stored.StoredLogits(tmp_path / "logits", about)
    missing = store.missing(range(20))
    assert len(missing) == 16
    store.put(missing[0], store.get([missing[0]], 12).rows(0))
    monkeypatch.setattr(stored.ranks, "own", lambda items: items[1::2])
    stored.fill(store, stored.Teacher(program), data(count=20), missing, 4, lambda: None)
    assert store.missing(range(20)) == missing[2::2]


def test_domains_are_refused(program, tmp_path, domains):
    with pytest.raises(OptionError, match="takes data without domains"):
        trained(program, text(tmp_path / "logits"), domains())


@pytest.mark.parametrize(("option", "what"), [("top=0", "top=0"), ("temperature=0.0", "0.0")])
def test_options_out_of_range(option, what, program):
    line = f"train{{steps=1 distill=kl{{stored=x {option}}}}}"
    with pytest.raises(OptionError, match=f"{what} must be"):
        trained(program, line)


def test_the_size_is_that_of_the_files(program, tmp_path):
    trained(program, text(tmp_path / "logits", top=8))
    about = json.loads((tmp_path / "logits" / stored.ABOUT).read_text())
    assert about["vocabulary"] == program.run()[0].shape[-1]
    size = sum(np.load(tmp_path / "logits" / f"{n}.npy").nbytes for n in ("ids", "logs", "rest"))
    assert size == 8 * 12 * (8 * (2 + 2) + 2)
    assert stored.size_of(1000, 12, 8, about["vocabulary"]) == "0.4 MB"
    assert stored.size_of(1000, 12, 8, 70_000) == "0.6 MB"
