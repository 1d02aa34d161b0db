"""Pipelines as lists and mappings: every recipe there and back, and through YAML and the schema."""

import jsonschema
import pytest
import yaml

import passes
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.recipes import RECIPES
from sparsify.text.schema import pipeline_schema
from sparsify.text.structure import flattened, structured

SCHEMA = jsonschema.Draft202012Validator(pipeline_schema(passes.ALL))


@pytest.mark.parametrize("item", RECIPES, ids=lambda item: item.name)
def test_recipes_there_and_back(item):
    value = structured(item.text)
    assert parse(flattened(value)) == parse(item.text)
    again = yaml.load(yaml.safe_dump(value), Loader=yaml.BaseLoader)
    assert parse(flattened(again)) == parse(item.text)
    assert list(SCHEMA.iter_errors(value)) == []


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("- choose-masks: {pattern: 2:4}", "choose-masks{pattern=2:4}"),
        ("- insert-masks: {of: [heads, channels]}", "insert-masks{of=heads,channels}"),
        (
            "- train: {steps: 3, distill: {kl: {weight: 0.5}}}",
            "train{steps=3 distill=kl{weight=0.5}}",
        ),
        ("- train: {steps: 3, distill: 'kl{weight=0.5}'}", "train{steps=3 distill=kl{weight=0.5}}"),
        ("- calibrate:\n- fold-masks: {}", "calibrate | fold-masks"),
        ("- insert-probes: {gram: true}", "insert-probes{gram=true}"),
        ("insert-masks | fold-masks", "insert-masks | fold-masks"),
    ],
)
def test_what_a_person_writes(written, text):
    assert flattened(yaml.load(written, Loader=yaml.BaseLoader)) == text


@pytest.mark.parametrize("wrong", [{}, [], 3, [["a"]], [{"a": 1, "b": 2}], [{"a": [1]}]])
def test_what_is_no_pipeline(wrong):
    with pytest.raises(PipelineError, match=r"pipeline is a text or a list|a pass is a name"):
        flattened(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        ["insert-mask"],
        [{"choose-masks": {"scor": "wanda"}}],
        [{"choose-masks": {"score": "wander"}}],
        ["train"],
        [{"train": {"steps": "many"}}],
    ],
    ids=str,
)
def test_the_schema_refuses(wrong):
    assert list(SCHEMA.iter_errors(wrong)) != []
