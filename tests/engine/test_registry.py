import sys
import types

import pytest

import passes
from sparsify.engine import registry
from sparsify.errors import PipelineError


@pytest.fixture
def fresh():
    """The catalogue is cached: forget it around the test."""
    registry.passes.cache_clear()
    yield
    registry.passes.cache_clear()


def test_the_catalogue_is_all_in_its_order():
    assert list(registry.passes().values()) == list(passes.ALL)
    assert all(name == item.name for name, item in registry.passes().items())
    assert len(registry.passes()) == len(passes.ALL)


@pytest.mark.parametrize("content", [None, (1, 2), [passes.Train], (dict,)])
def test_a_stranger_of_the_same_name_is_refused(content, fresh, monkeypatch):
    stranger = types.ModuleType("passes")
    stranger.__file__ = "/somewhere/passes.py"
    if content is not None:
        stranger.ALL = content
    monkeypatch.setitem(sys.modules, "passes", stranger)
    with pytest.raises(PipelineError) as caught:
        registry.passes()
    assert str(caught.value) == (
        "'passes' at /somewhere/passes.py is not the one of sparsify-fx: another module of that name "
        "stands before it on sys.path; rename or remove it"
    )


def test_a_missing_package_is_said(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "passes", None)
    with pytest.raises(
        PipelineError, match="the package 'passes' of sparsify-fx could not be imported"
    ):
        registry.parse_passes("insert-lora")


def test_unknown_exporters_name_the_nearest():
    with pytest.raises(PipelineError) as caught:
        registry.parse_exporter("safetensor")
    assert str(caught.value) == "no exporter is called 'safetensor'; did you mean 'safetensors'?"
