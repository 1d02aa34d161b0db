"""Whose sequences the steps of a training on domains get, what is measured, and going on bitwise."""

import math

import pytest
import torch

from sparsify.data.domains import DomainData
from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.measure.quality import perplexity
from sparsify.train import loop
from sparsify.train.domains import Dynamic, code_rule, paper_rule
from sparsify.train.following import Following

NAMES, WEIGHTS = ("a", "b", "c"), (0.5, 0.3, 0.2)


def run(program, options, data):
    context = Context(data=data)
    program = parse(f"train{{steps=12 batch=4 lr=0.003 {options}}}").run(program, context)
    return program, context.figures["train"]


def ids(count, seed):
    """`count` sequences of 12 ids."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, 43, (count, 12), generator=draw)


def tensors(program):
    return {path: value.detach().clone() for path, value in program.tensors()}


def same(one, two):
    one, two = tensors(one), tensors(two)
    return all(torch.equal(one[path], two[path]) for path in one)


@pytest.fixture
def asked(monkeypatch):
    """The sequences that every step of the runs in a test took."""
    found = []
    batch = loop._Run._batch

    def noted(self, indices):
        found.append(list(indices))
        return batch(self, indices)

    monkeypatch.setattr(loop._Run, "_batch", noted)
    return found


def test_steps_get_sequences_in_proportion(domains, traced, asked):
    data = domains()
    run(traced("llama"), "accumulate=2", data)
    counts = [0, 0, 0]
    for index in (index for part in asked for index in part):
        counts[data.domain_of(index)] += 1
    assert counts == [48, 29, 19]


def test_constant_weights_stay_and_measuring_changes_no_bit(domains, traced, asked):
    measured, rows = run(traced("llama"), "domains=constant{every=3}", domains())
    drawn = [list(part) for part in asked]
    asked.clear()
    bare, _ = run(traced("llama"), "", domains())
    assert asked == drawn
    assert same(measured, bare)
    noted = [row["step"] for row in rows if "weight.a" in row]
    assert noted == [1, 4, 7, 10, 12]
    assert {row["weight.b"] for row in rows if "weight.b" in row} == {0.3}
    assert not any(key.startswith("reference.") for row in rows for key in row)


def test_what_is_measured_is_the_loss_of_what_is_held_out(domains, traced):
    program, data = traced("llama"), domains()
    wanted = {
        domain.name: perplexity(lambda b: program.run(b)[0], domain.held).loss
        for domain in data.domains
    }
    _, rows = run(program, "domains=constant{every=50}", data)
    for name in NAMES:
        assert rows[0][f"validation.{name}"] == pytest.approx(wanted[name], rel=1e-5)
    after = {
        domain.name: perplexity(lambda b: program.run(b)[0], domain.held).loss
        for domain in data.domains
    }
    for name in NAMES:
        assert rows[-1][f"validation.{name}"] == pytest.approx(after[name], rel=1e-5)
        assert after[name] != pytest.approx(wanted[name], rel=1e-3)


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_dynamic_weights_follow_the_rule_and_the_draws_follow_them(domains, rule, traced, asked):
    data = domains()
    given = "a:9.0,b:3.5,c:9.0"
    _, rows = run(
        traced("llama"), f"domains=dynamic{{rule={rule} every=4 reference={given}}}", data
    )
    update = {"paper": paper_rule, "code": code_rule}[rule]
    references, weights = (9.0, 3.5, 9.0), list(WEIGHTS)
    for step in (4, 8):
        row = rows[step]
        excess = [
            row[f"validation.{name}"] - least for name, least in zip(NAMES, references, strict=True)
        ]
        weights = update(weights, excess)
        assert [row[f"weight.{name}"] for name in NAMES] == pytest.approx(weights, rel=1e-12)
        drawn = [data.domain_of(index) for part in asked[step : step + 4] for index in part]
        counts = [drawn.count(number) for number in range(3)]
        assert counts == pytest.approx([16 * weight for weight in weights], abs=1.5)
    assert weights[1] > 0.8
    assert [rows[0][f"reference.{name}"] for name in NAMES] == [9.0, 3.5, 9.0]
    assert [rows[0][f"weight.{name}"] for name in NAMES] == list(WEIGHTS)


def test_references_that_are_not_given_are_the_dense_twins(domains, traced):
    data, program = domains(), traced("llama")
    dense = {
        domain.name: perplexity(lambda b: program.run(b)[0], domain.held).loss
        for domain in data.domains
    }
    context = Context(data=data)
    text = "train{steps=4 batch=4 domains=dynamic{every=2 reference=b:3.5,dense}}"
    masks = "insert-masks | choose-masks{sparsity=0.6}"
    parse(f"{masks} | {text}").run(program, context)
    row = context.figures["train"][0]
    assert row["reference.b"] == 3.5
    for name in ("a", "c"):
        assert row[f"reference.{name}"] == pytest.approx(dense[name], rel=1e-5)
        assert abs(row[f"validation.{name}"] - dense[name]) > 0.01


def test_bf16_and_distillation_measure_too(domains, traced):
    losses = []
    for precision in ("float32", "bf16"):
        context = Context(data=domains())
        text = (
            f"train{{steps=3 batch=4 precision={precision} distill=kl task=0.0 recompute=layers "
            "domains=dynamic{every=2 samples=2}}"
        )
        parse(text).run(traced("llama"), context)
        row = context.figures["train"][0]
        losses.append([row[f"validation.{name}"] for name in NAMES])
        assert [row[f"reference.{name}"] for name in NAMES] == pytest.approx(losses[-1], rel=2e-2)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_ragged_domains_are_measured_by_label(traced):
    rows = ids(20, 0)
    mask = (torch.arange(12) < 3 + torch.arange(20)[:, None] % 9).long()
    ragged = TensorData(
        {
            "input_ids": rows,
            "attention_mask": mask,
            "labels": rows.masked_fill(mask == 0, -100),
        }
    )
    data = DomainData({"even": TextData(ids(20, 1).flatten(), 12), "ragged": ragged}, holdout=0.4)
    program = traced("llama")
    wanted = perplexity(lambda b: program.run(b)[0], data.domains[1].held)
    assert wanted.tokens < 8 * 11
    _, found = run(program, "domains=constant{every=50}", data)
    assert found[0]["validation.ragged"] == pytest.approx(wanted.loss, rel=1e-5)


def test_at_most_so_many_samples_are_measured(domains, traced):
    program, data = traced("llama"), domains(holdout=0.5)
    wanted = perplexity(lambda b: program.run(b)[0], data.domains[2].held, limit=3).loss
    _, rows = run(program, "domains=constant{samples=3}", data)
    assert rows[0]["validation.c"] == pytest.approx(wanted, rel=1e-5)


class Killed(Exception):
    """A kill."""


class Killing:
    """A progress that ends the run after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def start(self, title, total):
        """Every pass counts."""

    def advance(self, **figures):
        """One step."""
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("how", ["constant{every=2}", "dynamic{rule=code every=3}"])
def test_a_run_goes_on_bitwise(domains, how, traced, tmp_path, asked):
    options = f"save_every=5 domains={how}"
    whole, wanted = run(traced("llama"), options, domains())
    drawn = [list(part) for part in asked]
    pipeline = parse(f"train{{steps=12 batch=4 lr=0.003 {options}}}")
    context = Context(data=domains(), progress=Killing(7))
    with pytest.raises(Killed):
        pipeline.run(traced("llama"), context, resume=tmp_path)
    asked.clear()
    context = Context(data=domains())
    resumed = pipeline.run(traced("llama"), context, resume=tmp_path)
    assert asked == drawn[5:]
    assert same(resumed, whole)
    plain = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in wanted]
    rows = context.figures["train"]
    assert [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows] == plain


def test_a_state_is_bound_to_its_domains(domains, traced, tmp_path):
    text = "train{steps=12 batch=4 save_every=2}"
    context = Context(data=domains(), progress=Killing(5))
    with pytest.raises(Killed):
        parse(text).run(traced("llama"), context, resume=tmp_path)
    other = domains(weights={"a": 0.4, "b": 0.4, "c": 0.2})
    with pytest.raises(PipelineError, match="keeps the state of another run: other data; give"):
        parse(text).run(traced("llama"), Context(data=other), resume=tmp_path)


def test_the_state_holds_weights_references_and_what_was_taken(domains):
    def losses():
        return {"a": 2.0, "b": 2.0, "c": 1.0}

    def dense():
        return {"a": 1.5, "b": 9.0, "c": 9.0}

    how = Dynamic(every=2, reference=("b:2.5", "dense"))
    first = Following(domains(), how, 0, losses, dense)
    first.begin(0)
    first.indices(0, 8)
    assert first.begin(1) == {}
    first.indices(1, 8)
    found = first.begin(2)
    assert found["weight.a"] == pytest.approx(0.5 * math.exp(0.5) / (0.5 * math.exp(0.5) + 0.5))
    second = Following(domains(), how, 0, losses, None)
    second.load_state_dict(first.state_dict())
    assert second.indices(2, 8) == first.indices(2, 8) == first.indices(2, 8)
    assert second.begin(4) == first.begin(4)
    assert second.draws.taken == first.draws.taken
