"""`sparsify-fx fuse`: a base model and its fine-tuned siblings as one program."""

from typing import TYPE_CHECKING, Annotated

import typer

from sparsify.commands.loudness import console
from sparsify.commands.options import Formats, Json, Out, Overwrite, loads_models, words
from sparsify.errors import OptionError
from sparsify.pretrained.loading import Loading

if TYPE_CHECKING:
    from sparsify.ir.program import Program

_ALL = 0  # singular directions that --rank keeps when it is this


@loads_models
def fuse_models(
    base: Annotated[str, typer.Option(help="The model that all siblings began as.")],
    experts: Annotated[str, typer.Option(help="Fine-tuned siblings, separated by commas.")],
    out: Out,
    rank: Annotated[int, typer.Option(help="Singular directions kept of each, 0 for all.")] = 32,
    gate: Annotated[int, typer.Option(help="Directions that the router looks at.")] = 8,
    top: Annotated[int, typer.Option(help="Siblings that serve a token.")] = 1,
    others: Annotated[
        str, typer.Option(help="All else is the 'base' model's, or the 'mean' of the siblings'.")
    ] = "base",
    to: Formats = "safetensors",
    overwrite: Overwrite = False,
    json: Json = None,
    *,
    loading: Loading,
) -> None:
    """Build one model of a base and its fine-tuned siblings, each token through those that know it."""
    if others not in ("base", "mean"):
        raise OptionError(f"--others is 'base' or 'mean', not '{others}'")
    from sparsify.commands.artifacts import open_program
    from sparsify.commands.bar import counted, step
    from sparsify.commands.export import written_formats
    from sparsify.disk.files import require_free, write_json
    from sparsify.engine.export import chosen_exporters
    from sparsify.engine.export import export as export_program
    from sparsify.fusion import Fusion, check_number, fuse, unfused

    chosen_exporters(words(to))
    require_free(out, overwrite=overwrite)
    how = Fusion(None if rank == _ALL else rank, gate, top, "mean" if others == "mean" else "base")
    check_number(how, len(words(experts)))  # before models are opened
    first = open_program(base, loading)
    siblings = [open_program(name, loading.of_another()) for name in words(experts)]
    with step("fusing"):
        made = fuse(first, siblings, how)
    sizes = f"{_count(first):,} parameters -> {_count(made):,} parameters"
    console.print(f"{sizes}: {', '.join(sorted(made.features))}")
    left = unfused(first, siblings, how) if how.others == "base" else []
    if left:
        console.print(
            f"{len(left)} other tensors differ and stay as the base has them, {left[0]} the first; "
            "--others mean takes the siblings' mean",
            soft_wrap=True,
        )
    with counted("exporting") as bar:
        paths = export_program(made, out, words(to), overwrite=overwrite, progress=bar)
    for name, path in paths.items():
        console.print(f"{name}: {path}", soft_wrap=True)
    if json is not None:
        figures = {"parameters": _count(made), "base": _count(first), "left": left}
        write_json(json, {**figures, "formats": written_formats(paths)})


def _count(program: "Program") -> int:
    return sum(value.numel() for value in program.module.parameters())
