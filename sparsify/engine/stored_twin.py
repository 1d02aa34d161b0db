"""The dense twin of a training run by its stored logits: where they are, what of, and which are missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsify import ranks
from sparsify.data.domains import DomainData
from sparsify.data.sequences import Data
from sparsify.disk.digests import of_json
from sparsify.engine.contract import Context
from sparsify.engine.fingerprint import data_fingerprint, fingerprint
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.text.options import Options
from sparsify.train.forward import Teacher
from sparsify.train.options import Kl
from sparsify.train.settings import Settings
from sparsify.train.steps import step_indices
from sparsify.train.stored import StoredData, StoredLogits, fill, size_of


def data_and_twin(
    program: Program, context: Context, how: Options | None, settings: Settings
) -> tuple[Data, Program | None]:
    """The data of a run and its dense twin; with stored logits, data that brings them along, and no twin."""
    assert context.data is not None
    if not isinstance(how, Kl) or how.stored is None:
        return context.data, context.dense
    return _with_logits(program, context, how, Path(how.stored), settings), None


def _with_logits(
    program: Program, context: Context, how: Kl, folder: Path, settings: Settings
) -> Data:
    """The data with the logits of the dense twin beside it; missing ones are written first.

    Raises OptionError for data with domains, outputs that are no logits of tokens, logits of something else
    in the folder, and missing ones where there is no twin.
    """
    data = context.data
    assert data is not None
    if isinstance(data, DomainData):
        raise OptionError(
            "distill=kl{stored=...} takes data without domains, whose order is known before"
        )
    about = _about(program, context.dense, data, how)
    store = StoredLogits(folder, about)
    batch = settings.batch * settings.accumulate
    drawn = {
        i
        for step in range(settings.steps)
        for i in step_indices(len(data), settings.seed, step, batch)
    }
    # What rank 0 has seen, and all have looked before one writes: else shares would not fit together.
    missing = ranks.gathered(store.missing(list(drawn)))[0]
    size = size_of(len(missing), data.length, about["top"], about["vocabulary"])
    if missing:
        if context.dense is None:
            raise OptionError(
                f"the folder '{folder}' lacks the logits of {len(missing)} sequences, and there is no dense "
                "twin to make them; remove it, or give the run a twin"
            )
        context.progress.start(f"storing {size} of logits", -(-len(missing) // settings.batch))
        twin = Teacher(context.dense, settings.precision)
        fill(store, twin, data, missing, settings.batch, context.progress.advance)
    context.notes.append(
        f"logits of {len(drawn)} sequences are read from '{folder.name}'; {len(missing)} of them "
        f"were written, {size}"
    )
    return StoredData(data, store)


def _about(program: Program, dense: Program | None, data: Data, how: Kl) -> Mapping[str, Any]:
    shape = program.run()[0].shape
    if len(shape) != 3:
        raise OptionError(
            f"'{program.source.outputs[0]}' {list(shape)} is no logits of tokens; leave stored= out"
        )
    return {
        "top": min(how.top, shape[-1]),
        "temperature": how.temperature,
        "length": data.length,
        "sequences": len(data),
        "vocabulary": shape[-1],
        "data": data_fingerprint(data),
        "model": of_json([program.source.model_class, dict(program.source.config)]),
        "twin": None if dense is None else fingerprint(dense),
    }
