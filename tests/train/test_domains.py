"""Options of training on domains: the two rules with their numbers, and what is refused."""

import pytest
import torch

from sparsify.data.domains import DomainData
from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import OptionError
from sparsify.train.domains import CONSTANT, Constant, code_rule, paper_rule

WEIGHTS, EXCESS = (0.5, 0.3, 0.2), (0.1, 0.0, -0.2)


def test_the_rule_of_the_paper():
    found = paper_rule(WEIGHTS, EXCESS)
    assert found == pytest.approx([0.52498, 0.28501, 0.19001], abs=5e-6)
    assert sum(found) == pytest.approx(1, abs=1e-15)


def test_the_rule_of_the_code():
    found = code_rule(WEIGHTS, EXCESS)
    assert found == pytest.approx([0.54368, 0.29518, 0.16113], abs=5e-6)
    assert sum(found) == pytest.approx(1, abs=1e-15)
    even = 1e-4 / 3
    plain = [(weight - even) / (1 - 1e-4) for weight in found]
    assert plain == pytest.approx([0.54371, 0.29518, 0.16111], abs=5e-6)


@pytest.mark.parametrize("rule", [paper_rule, code_rule])
def test_weights_stay_shares_over_many_updates_and_at_any_loss(rule):
    weights = list(WEIGHTS)
    for _ in range(1000):
        weights = rule(weights, EXCESS)
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) >= 0
    assert rule(WEIGHTS, (5000.0, 0.0, -5000.0))[0] == pytest.approx(1, abs=1e-4)
    assert rule(WEIGHTS, (0.0, 0.0, 0.0)) == pytest.approx(WEIGHTS, abs=1e-4)


def test_the_rules_disagree_where_a_domain_is_below_its_reference():
    below = (0.0, 0.0, -0.2)
    assert paper_rule(WEIGHTS, below) == pytest.approx(WEIGHTS, abs=1e-15)
    assert code_rule(WEIGHTS, below)[2] < 0.172
    # The paper's own weights can die out by being multiplied on; the code's cannot.
    weights = {rule: list(WEIGHTS) for rule in (paper_rule, code_rule)}
    for rule in weights:
        for _ in range(300):
            weights[rule] = rule(weights[rule], (1.0, 0.0, 0.0))
    assert weights[paper_rule][1] < 1e-100
    assert weights[code_rule][1] > 3e-5


def ids(count, seed):
    """`count` sequences of 12 ids."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, 43, (count, 12), generator=draw)


def run(program, options, data):
    context = Context(data=data)
    program = parse(f"train{{steps=12 batch=4 lr=0.003 {options}}}").run(program, context)
    return program, context.figures["train"]


REFUSED = [
    ("dynamic{reference=wbe:1.0,dense every=2}",
     "reference=wbe:1.0 is for 'wbe', which is no domain of the data; there are: a, b, c"),
    ("dynamic{reference=a:1.0,b:1.0 every=2}",
     "reference has no loss for 'c'; give one, or 'dense' to measure that of the dense twin"),
    ("dynamic{reference=a:x,dense every=2}", "reference=a:x is not NAME:LOSS with a loss of at least 0, "
     "as in web:1.87, nor 'dense'"),
    ("dynamic{reference=a:-1,dense every=2}", "reference=a:-1 is not NAME:LOSS with a loss of at least 0, "
     "as in web:1.87, nor 'dense'"),
    ("dynamic{reference=a:1,a:2,dense every=2}", "reference gives 'a' twice"),
    ("dynamic{every=12}", "every=12 is never due in 12 steps; lower it"),
    ("dynamic{every=0}", "dynamic{every=0} must be at least 1"),
    ("constant{samples=0}", "constant{samples=0} must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "sentence"), REFUSED)
def test_options_that_do_not_fit_the_domains(domains, how, sentence, traced):
    with pytest.raises(OptionError) as error:
        run(traced("llama"), f"domains={how}", domains())
    assert str(error.value).endswith(f"', {sentence}")


def test_domains_that_are_not_there_or_not_enough(domains, traced, text):
    def said(how, data, name="llama", options=""):
        with pytest.raises(OptionError) as error:
            run(traced(name), f"domains={how} {options}", data)
        return str(error.value)

    for how in ("dynamic{every=2}", "constant{every=2}"):
        assert said(how, text).endswith(
            f"domains={how} needs data with domains; name them, as in --data web=a.txt,code=b.txt"
        )
    one = DomainData({"a": text})
    assert said("dynamic{every=2}", one).endswith(
        "domains=dynamic weighs domains against each other, and the data has 'a' alone"
    )
    assert said("dynamic{every=2}", domains(holdout=0)).endswith(
        "goes by losses that cannot be measured: the data holds out nothing"
    )
    bare = TensorData({"input_ids": ids(20, 0)})
    unlabelled = DomainData({"a": bare, "b": bare})
    assert said("dynamic{every=2}", unlabelled, options="task=0.0 distill=kl").endswith(
        "goes by losses that cannot be measured: the data has no labels"
    )
    few = DomainData({"a": text, "b": TextData(ids(3, 0).flatten(), 12)}, {"a": 0.4, "b": 0.6})
    assert said("constant", few, options="accumulate=8").endswith(
        "batch=4 accumulate=8 goes through the 2 sequences of the domain 'b' 10 times a step; take a "
        "smaller batch or bring more text"
    )


def test_losses_that_cannot_be_measured_are_left_out_and_told(domains, traced):
    report = Report()
    context = Context(data=domains(holdout=0))
    parse("train{steps=2 batch=4}").run(traced("llama"), context, report=report)
    assert report.rows[0].note == "no loss of domains is measured: the data holds out nothing"
    assert not any("." in key for row in context.figures["train"] for key in row)
    report = Report()
    parse("train{steps=4 batch=4 domains=dynamic{every=2 reference=a:1,dense}}").run(
        traced("llama"), Context(data=domains()), report=report
    )
    assert report.rows[0].note.startswith("domains, by the paper's rule: a weight 0.5 to 0.")
    assert ", reference 1; b weight 0.3 to 0." in report.rows[0].note
    assert ", reference of the dense twin " in report.rows[0].note


def test_options_print_and_parse_back():
    text = "train{steps=3 domains=dynamic{rule=code every=7 reference=web:1.5,dense}}"
    assert str(parse(text)) == text
    assert str(parse("train{steps=3 domains=constant}")) == "train{steps=3}"
    assert parse("train{steps=3}").passes[0].domains == CONSTANT == Constant()
