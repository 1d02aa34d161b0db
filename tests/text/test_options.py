"""Pipelines are text: what is printed parses back, for every pass and every option; errors are sentences."""

import contextlib
import dataclasses
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import passes
from sparsify.engine.pipeline import Pipeline, parse
from sparsify.errors import OptionError, PipelineError
from sparsify.text.options import OneOf, Options, describe_type
from sparsify.text.syntax import parse_calls

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.*-:/", min_size=1, max_size=12)


def values(kind):
    """Any value of a field type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is typing.Annotated:
        return st.sampled_from(next(extra for extra in args[1:] if isinstance(extra, OneOf)).names)
    if origin in (typing.Union, types.UnionType):
        # `none` is how nothing is spelt, so a word cannot be it.
        return st.one_of([values(a).filter(lambda v: v != "none") for a in args])
    if origin is tuple:
        return st.lists(values(args[0]), min_size=1, max_size=3).map(tuple)
    if isinstance(kind, type) and issubclass(kind, Options):
        return instances(kind)
    plain = {
        int: st.integers(-(10**6), 10**6),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: WORDS,
        type(None): st.none(),
    }
    return plain[kind]


def instances(kind):
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {item.name: values(hints[item.name]) for item in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


PASSES = st.one_of([instances(item) for item in passes.ALL])


@settings(max_examples=300, deadline=None)
@given(st.lists(PASSES, min_size=1, max_size=3))
def test_any_pipeline_prints_and_parses_back(items):
    pipeline = Pipeline(items)
    again = parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)


@pytest.mark.parametrize("item", passes.ALL, ids=lambda item: item.name)
def test_defaults_print_as_the_bare_name(item):
    required = [f for f in dataclasses.fields(item) if f.default is dataclasses.MISSING]
    made = item(**{f.name: 3 for f in required})
    wanted = f"{item.name}{{steps=3}}" if required else item.name
    assert str(made) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "train{steps=5 distill=kl{weight=0.5 temperature=2.0}}",
        "train{steps=5 distill=squared}",
        "insert-masks{of=weights,heads targets=model.layers.0.*,*.down_proj ignore=lm_head}",
        "choose-masks{pattern=2:4}",
        "insert-probes | calibrate | remove-probes",
    ],
)
def test_texts_are_printed_as_they_were_written(text):
    assert str(parse(text)) == text


def test_space_is_free_and_nothing_else_is():
    wanted = parse("insert-masks{of=weights,heads} | train{steps=5 distill=kl{temperature=2.0}}")
    assert (
        parse(
            " insert-masks { of = weights , heads }|train{steps=5\n distill=kl{ temperature=2.0 } } "
        )
        == wanted
    )
    assert parse("train{steps=5 distill=none}").passes[0].distill is None
    assert parse("train{steps=5 distill=kl{}}") == parse("train{steps=5 distill=kl}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "pipeline text, column 1: expected a name in ''"),
        ("a |", "pipeline text, column 4: expected a name in 'a |'"),
        ("| a", "pipeline text, column 1: expected a name in '| a'"),
        ("a b", "pipeline text, column 3: unexpected 'b' in 'a b'"),
        ("a}", "pipeline text, column 2: unexpected '}' in 'a}'"),
        ("a{", "pipeline text, column 3: expected an option or '}' in 'a{'"),
        ("a{x}", "pipeline text, column 4: expected '=' after 'x' in 'a{x}'"),
        ("a{x=}", "pipeline text, column 5: expected a name in 'a{x=}'"),
        ("a{x=1,}", "pipeline text, column 7: expected a name in 'a{x=1,}'"),
        ("a{x=1 x=2}", "pipeline text, column 8: option 'x' given twice in 'a{x=1 x=2}'"),
        ("a{=1}", "pipeline text, column 3: expected an option or '}' in 'a{=1}'"),
    ],
)
def test_text_that_cannot_be_read_says_where(text, sentence):
    with pytest.raises(PipelineError) as caught:
        parse_calls(text)
    assert str(caught.value) == sentence


@settings(max_examples=300, deadline=None)
@given(st.text("ab{}|=, 1", max_size=14))
def test_no_text_does_anything_but_parse_or_refuse(text):
    with contextlib.suppress(PipelineError):
        parse_calls(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("insert-probes{gram=yes}", "insert-probes{gram} cannot be 'yes'; it takes true|false"),
        ("insert-probes{gram=1}", "insert-probes{gram} cannot be '1'; it takes true|false"),
        ("train{steps=2.5}", "train{steps} cannot be '2.5'; it takes int"),
        (
            "choose-masks{sparsity=half}",
            "choose-masks{sparsity} cannot be 'half'; it takes float|none",
        ),
        ("insert-masks{targets=a{b=1}}", "insert-masks{targets} cannot be 'a{...}'; it takes word"),
        ("train{steps=1 distill=kl,kl}", "train{distill} takes one value, not 2"),
        ("remove-probes{all=true}", "'remove-probes' has no option 'all'; there are none"),
        (
            "train{steps=1 distill=kl{weight=big}}",
            "kl{weight} cannot be 'big'; it takes float",
        ),
    ],
)
def test_values_of_another_type(text, sentence):
    with pytest.raises(OptionError) as caught:
        parse(text)
    assert str(caught.value) == sentence


def test_types_are_described_for_readers():
    hints = typing.get_type_hints(passes.Train)
    assert describe_type(hints["distill"]) == "kl{}|squared{}|none"
    assert describe_type(hints["update"]) == "all|lora|norms|adapters|experts|prompt"
    assert describe_type(tuple[str, ...]) == "word,..."
