"""Features: every one is found where a pass has put it, dropped without a trace, and known by its tensors."""

import pytest

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.remedies import remedies
from sparsify.errors import SparsifyError
from sparsify.ir import tensor_names
from sparsify.ir.features.catalogue import ALL, carried, features, register
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import sweep
from sparsify.ir.text import to_text
from tests.ir.axes.families import traced as family

ADDED = {
    "mask.weights": "insert-masks",
    "mask.convolutions": "insert-masks{of=convolutions}",
    "mask.channels": "insert-masks{of=channels}",
    "mask.heads": "insert-masks{of=heads}",
    "mask.layers": "insert-masks{of=layers}",
    "mask.blocks": "insert-masks{of=blocks}",
    "mask.hidden": "insert-masks{of=hidden}",
    "factors": "choose-tensors{rank=2} | split-linears",
    "lora": "insert-lora{rank=2}",
    "row-scales": "insert-scales",
    "bias": "insert-masks{of=channels} | insert-bias{of=channels}",
    "adapters": "insert-adapters{ratio=0.5}",
    "slorb": "insert-masks | insert-slorb{k=4}",
    "experts": "insert-experts{experts=3 rank=2}",
    "neighbours": "insert-neighbours{size=16 k=4}",
    "prompt": "insert-prompt{tokens=3}",
    "prefix": "insert-prompt{tokens=3} | choose-prompt | fold-prompt",
    "probe": "insert-probes",
    "quantizers": "insert-quantizers{values=int8}",
    "omission": "insert-omission",
    "mask.experts": "insert-masks{of=experts}",
    "merged-experts": "insert-probes{of=routers} | calibrate | choose-clusters{experts=3} | "
    "remove-probes | merge-experts",
}
TAKEN_OUT = {
    "mask.weights": ["fold-masks"],
    "mask.convolutions": ["fold-masks{of=convolutions}"],
    "mask.channels": ["prune-channels"],
    "mask.heads": ["prune-heads"],
    "mask.experts": ["prune-experts"],
    "mask.layers": ["prune-layers"],
    "mask.blocks": ["prune-layers{of=blocks}"],
    "mask.hidden": ["prune-hidden"],
    "factors": [],
    "lora": ["fold-lora"],
    "row-scales": ["fold-scales"],
    "bias": ["fold-bias"],
    "quantizers": ["pack-nm"],
    "probe": ["remove-probes"],
    "omission": ["remove-omission"],
    "adapters": ["fold-adapters"],
    "experts": [],
    "slorb": [],
    "neighbours": [],
    "prompt": ["fold-prompt"],
    "prefix": [],
    "merged-experts": [],
    "packed": [],
}
# Features of other models than decoders.
ELSEWHERE = {"mask.experts": "mixtral", "merged-experts": "mixtral", "mask.convolutions": "vit"}
BY_NAME = {feature.name: feature for feature in ALL}


@pytest.mark.parametrize("name", ADDED)
def test_what_a_pass_adds_is_found_and_dropped(name, traced, tokens):
    program = family(ELSEWHERE[name]) if name in ELSEWHERE else traced("llama")
    context = Context(data=tokens)
    *before, last = ADDED[name].split(" | ")
    for text in before:
        parse(text).run(program, context)
    text, found = to_text(program), BY_NAME[name].find
    assert not found(program)
    parse(last).run(program, context)
    assert found(program)
    if BY_NAME[name].drop is not None:
        while places := found(program):
            BY_NAME[name].drop(program, places[0])
        sweep(program)
        assert to_text(program) == text


def test_every_feature_of_the_graph_is_tried_here():
    assert set(ADDED) | {"packed"} == tensor_names.graph_features() == set(TAKEN_OUT)
    assert {feature.name for feature in features() if feature.in_values} == {
        "stats",
        "quantized",
        "shares",
        "values",
        "clusters",
        "prompted",
    }


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_the_pass_that_takes_it_out(name):
    assert remedies([name]) == TAKEN_OUT[name]


def test_what_a_decode_variant_takes_over():
    assert carried() == {
        "merged-experts",
        "factors",
        "adapters",
        "experts",
        "slorb",
        "neighbours",
        "prompt",
        "prefix",
        "packed",
    }


def test_names_are_unique():
    with pytest.raises(SparsifyError) as caught:
        register(Feature("lora", ("_other",)))
    assert str(caught.value) == "two features are called 'lora'; rename one"
    with pytest.raises(SparsifyError) as caught:
        register(Feature("others", ("_lora_a",)))
    assert str(caught.value) == (
        "'_lora_a' ends tensors of the feature 'lora'; 'others' needs another"
    )
    assert "others" not in {feature.name for feature in features()}
