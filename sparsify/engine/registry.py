"""The one door to `passes` and `exporters`: catalogues by name, and text to pipelines."""

import importlib
from functools import cache
from typing import Any

from sparsify.engine.contract import Exporter, Pass
from sparsify.errors import PipelineError
from sparsify.plugins import EXPORTERS, PASSES, plugins
from sparsify.text.catalogue import unknown_name
from sparsify.text.options import Options
from sparsify.text.syntax import Call, parse_calls


@cache
def passes() -> dict[str, type[Pass]]:
    """Every pass by its name in text, in the order of the catalogue, then those of other packages."""
    return _by_name("passes", PASSES, Pass)


@cache
def exporters() -> dict[str, type[Exporter]]:
    """Every exporter by its name in text, those of other packages last."""
    return _by_name("exporters", EXPORTERS, Exporter)


def parse_passes(text: str) -> list[Pass]:
    """The passes of a pipeline text.

    Raises PipelineError for text that cannot be read or an unknown pass, OptionError for options.
    """
    return [_bind(call, passes(), "pass") for call in parse_calls(text)]


def needs_of(text: str) -> tuple[str, ...]:
    """What a pipeline asks of whoever runs it: `data`, `training`; errors as in `parse_passes`."""
    items = parse_passes(text)
    wants = [("data", any("data" in item.effect().wants for item in items))]
    wants.append(("training", any(item.name == "train" for item in items)))
    return tuple(word for word, wanted in wants if wanted)


def parse_exporter(text: str) -> Exporter:
    """The exporter a word or a call like `onnx{opset=23}` names; errors as in `parse_passes`."""
    calls = parse_calls(text)
    if len(calls) > 1:
        raise PipelineError(f"'{text}' is not one format; separate formats by commas")
    exporter: Exporter = _bind(calls[0], exporters(), "exporter")
    return exporter


def _bind(call: Call, known: dict[str, Any], kind: str) -> Any:
    if call.name not in known:
        raise unknown_name(kind, call.name, known)
    return known[call.name].bind(call)


def _by_name(package: str, group: str, base: type[Options]) -> dict[str, Any]:
    found = {item.name: item for item in _catalogue(package, base)}
    for item in plugins(group):
        if not (isinstance(item, type) and issubclass(item, base)):
            raise PipelineError(f"{item!r} is offered as {group}, but is no {base.__name__}")
        if item.name in found:
            raise PipelineError(
                f"{item.__module__} offers '{item.name}', a name that {found[item.name].__module__} has; "
                "remove one of the packages"
            )
        found[item.name] = item
    return found


def _catalogue(package: str, base: type) -> tuple[Any, ...]:
    """`ALL` of a top-level package, refused when another distribution owns that name."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise PipelineError(
            f"the package '{package}' of sparsify-fx could not be imported ({error}); reinstall it"
        ) from error
    items = getattr(module, "ALL", None)
    known = isinstance(items, tuple) and all(
        isinstance(item, type) and issubclass(item, base) for item in items
    )
    if not known:
        raise PipelineError(
            f"'{package}' at {module.__file__} is not the one of sparsify-fx: another module of "
            "that name stands before it on sys.path; rename or remove it"
        )
    assert isinstance(items, tuple)
    return items
