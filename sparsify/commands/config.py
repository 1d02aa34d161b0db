"""`--config run.yaml`: a file gives a verb's options, the command line goes over it; and the file of a run.

YAML's own types are not used: every scalar is taken as it is written, so that `pattern: 2:4` stays 2:4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from sparsify.disk.files import require_file
from sparsify.errors import DataError, OptionError, nearest, reason_of
from sparsify.text.structure import flattened, structured

FILE = "run.yaml"  # that every run writes into its folder
_MOST = 1 << 20  # characters of a file that a person has written


def from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a file the defaults of the options of a verb.

    Raises OptionError for what is no option, DataError for a file that cannot be read.
    """
    if path is None or context.resilient_parsing:
        return path
    known = {str(param.name).replace("_", "-"): str(param.name) for param in context.command.params}
    del known["config"]
    defaults: dict[str, Any] = {}
    for key, value in read(path).items():
        name = key.replace("_", "-")
        if name not in known:
            raise OptionError(f"'{path}' has '{key}', which is no option{nearest(name, known)}")
        defaults[known[name]] = _spelt(path, name, value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def read(path: Path) -> Mapping[str, Any]:
    """The mapping that a YAML file holds, scalars as text; DataError for anything else."""
    require_file(path)
    if path.stat().st_size > _MOST:
        raise DataError(f"'{path}' is no file of options: it has {path.stat().st_size:,} bytes")
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"'{path}' could not be read as YAML: {reason_of(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DataError(
            f"'{path}' holds no options; write them as lines 'name: value', as in 'model: embedded'"
        )
    return found


def written(options: Mapping[str, Any]) -> str:
    """Options as the text of such a file; a pipeline as a list of passes, None left out."""
    values = {name: value for name, value in options.items() if value is not None}
    values["pipeline"] = structured(values["pipeline"])
    values["to"] = [structured(word)[0] for word in values["to"]]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def typed_alone(context: typer.Context, **values: Any) -> list[Any]:
    """Of options that exclude each other, what the command line says where it says any; else the file's."""
    sources = {name: context.get_parameter_source(name) for name in values}
    typed = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    return [value if name in typed or not typed else None for name, value in values.items()]


def _spelt(path: Path, name: str, value: Any) -> Any:
    """A value as the command line takes it."""
    if name == "pipeline":
        return flattened(value)
    if name == "to" and isinstance(value, list):
        return ",".join(flattened([item]) for item in value)
    if name == "data" and isinstance(value, dict):
        return ",".join(f"{key}={place}" for key, place in value.items())
    if isinstance(value, list | dict):
        raise OptionError(f"'{path}' gives '{name}' {len(value)} values; it takes one")
    return value
