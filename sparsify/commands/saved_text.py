"""`sparsify-fx show`: a program as text, which a saved one has beside it; all else is computed."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify.commands.catalogue import check_words
from sparsify.commands.loudness import answer
from sparsify.commands.options import Json, Model, loads_models
from sparsify.disk.files import write_json
from sparsify.disk.program_text import head_of, text_of
from sparsify.errors import OptionError
from sparsify.pretrained.loading import STRICT, Loading


@loads_models
def show_model(
    model: Model,
    pipeline: Annotated[str | None, typer.Option(help="Passes without data to run first.")] = None,
    axes: Annotated[bool, typer.Option(help="Print the coupled axes instead.")] = False,
    cost: Annotated[bool, typer.Option(help="Print what a token costs instead.")] = False,
    json: Json = None,
    *,
    loading: Loading,
) -> None:
    """Print a model as a program, its coupled axes with their pins, or what a token costs."""
    check_words(pipeline)
    path, computed = Path(model), pipeline is not None or axes or cost
    if computed and path.suffix == ".txt" and path.is_file():
        raise OptionError(f"'{model}' is a text; --pipeline, --axes and --cost are of models")
    text = None if computed or loading != STRICT else text_of(path)
    if text is None:
        from sparsify.commands.show import show

        show(model, pipeline, axes, cost, answer, loading, json)
        return
    if json is not None:
        name, features = head_of(text)
        write_json(json, {"class": name, "features": features, "text": text.partition("\n")[2]})
    answer.out(text, end="", highlight=False)
