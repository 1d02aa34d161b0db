"""Write an export so that it is either whole, read back and equal, or not there at all."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sparsify.describe.card import card
from sparsify.describe.facts import write_facts
from sparsify.describe.of_program import facts_of
from sparsify.disk.files import new_folder
from sparsify.disk.hashes import write_hashes
from sparsify.disk.locks import InUse, locked
from sparsify.engine.compare import compare_export
from sparsify.engine.contract import Exporter, Progress, Silent
from sparsify.engine.registry import parse_exporter
from sparsify.engine.remedies import remedies
from sparsify.errors import DataError, ExportError, OptionError
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import FACTORS, PACKED, value_features
from sparsify.pretrained.origin import CARD, write_terms
from sparsify.select.target_shape import Heads

# As an exporter's `accepts`: the format holds whatever a pass may put into a program.
EVERY_FEATURE = frozenset({"*"})
_STEPS = 4  # that `write_checked` tells


def export(
    program: Program,
    folder: str | Path,
    to: Sequence[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Export a program to several formats, each into `folder/<format>`; the paths by format.

    `to` holds words like `onnx` or calls like `onnx{opset=20}`. All formats are checked before the
    first is written. `progress` is told when a format was prepared, written, read back, and described.
    Raises ExportError, PipelineError for an unknown format, OptionError for its
    options, InUse when another process is writing there.
    """
    chosen = check_exports(program, to, program.features)
    progress, made = progress or Silent(), {}
    progress.start("exporting", _STEPS * len(chosen))
    with locked(Path(folder)):
        for exporter in chosen:
            progress.rename(exporter.name)
            made[exporter.name] = write_checked(
                exporter, program, Path(folder), overwrite, progress
            )
    return made


def check_exports(
    program: Program, to: Sequence[str], features: frozenset[str], heads: Heads | None = None
) -> list[Exporter]:
    """The exporters of some formats, if they can hold the program once it has `features` and `heads`.

    Asked before a long run as well as before writing; errors as in `export`.
    """
    chosen = chosen_exporters(to)
    for exporter in chosen:
        refuse_features(exporter, features)
        exporter.check(program)
        if heads is not None:
            exporter.check_heads(program, heads)
    return chosen


def chosen_exporters(to: Sequence[str]) -> list[Exporter]:
    """The exporters of some formats; OptionError for none, or one twice, other errors as in `export`."""
    chosen = [parse_exporter(text) for text in to]
    names = [exporter.name for exporter in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not chosen:
        raise OptionError(
            f"the format {twice[0]} is named twice" if twice else "no format to export to is named"
        )
    return chosen


def write_checked(
    exporter: Exporter,
    program: Program,
    folder: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export a program to `folder/<name>` and return that path.

    The files are written next to it, read back, and run on the sample inputs and on a second batch
    of another size and length; only then do they take their place. Raises ExportError, and leaves
    what stood there before, when a feature does not fit the format, the place is taken, or outputs
    differ by more than `limit * max |output|` (scaled by the precision of the outputs).
    """
    refuse_features(exporter, program.features)
    refuse_not_finite(program)
    exporter.check(program)
    target, progress = folder / exporter.name, progress or Silent()
    try:
        with locked(folder), new_folder(target, overwrite=overwrite) as partial:
            variant = exporter.variant(program)
            progress.advance()
            exporter.write(variant, partial)
            progress.advance()
            compare_export(exporter, variant, partial)
            progress.advance()
            write_description(exporter, program, partial)
            write_hashes(partial)
            progress.advance()
    except InUse:
        raise
    except DataError as error:
        raise ExportError(f"{exporter.name}: {error}") from error
    return target


def refuse_not_finite(program: Program) -> None:
    """Raise ExportError for a tensor with NaN, or a parameter with infinity; a mask may hold that."""
    for path, value in program.tensors():
        wide = value.detach().float() if value.is_floating_point() else None
        if wide is None:
            continue
        bad = ~wide.isfinite() if isinstance(value, torch.nn.Parameter) else wide.isnan()
        if bool(bad.any()):
            raise ExportError(
                f"the tensor '{path}' holds {int(bad.sum())} values that are NaN or infinite; "
                "nothing was written: go back to the program before it broke"
            )


def refuse_features(exporter: Exporter, features: frozenset[str]) -> None:
    """Raise ExportError, naming the passes to add, for features that the format does not hold."""
    held = exporter.holds()
    unfit = [] if held == EVERY_FEATURE else sorted(features - held - value_features())
    if unfit:
        passes = remedies(unfit)
        advice = f"add {' | '.join(passes)} to the pipeline, or " if passes else ""
        if "merged-experts" in unfit:
            advice = "give choose-clusters gates=sliced and put prune-experts in place of merge-experts, or "
        if "prompt" in unfit:  # which no other form of it would change
            advice = "leave insert-prompt out of the pipeline, or "
        if FACTORS in unfit:
            advice = "leave split-linears out of the pipeline, or "
        if PACKED in unfit:
            advice = "leave pack-nm out of the pipeline, or "
        raise ExportError(
            f"{exporter.name} cannot hold {', '.join(unfit)}; {advice}export to safetensors"
        )


def write_description(exporter: Exporter, program: Program, folder: Path) -> None:
    """Write the figures of an export and its model card beside the files of the format."""
    facts = facts_of(program)
    write_terms(program.source.origin, folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    write_facts(facts, folder)
    text = card(
        facts, exporter.name, exporter.library, exporter.usage(program), size, program.source.origin
    )
    (folder / CARD).write_text(text, encoding="utf-8")
