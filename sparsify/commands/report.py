"""`sparsify-fx report`: one HTML page about a run or a model, with plots."""

from pathlib import Path

from sparsify.commands.artifacts import open_program
from sparsify.describe.facts import Facts
from sparsify.describe.of_program import facts_of
from sparsify.errors import SparsifyError
from sparsify.report.found import Format, Found, find
from sparsify.report.page import write_page


def report(folder: Path) -> Path:
    """Write the page into the folder and return its path; DataError for a folder of something else."""
    found = find(folder)
    if found.facts is not None:
        return write_page(found)
    facts, missing = _opened(found)
    return write_page(found, facts, missing)


def _opened(found: Found) -> tuple[Facts | None, str]:
    """Figures of the first model that can be opened as a program, or why there are none."""
    why = "no model is exported here"
    for form in found.formats:
        if _is_onnx(form):
            why = f"{form.name} was written without figures of its weights; export the model again"
            continue
        try:
            return facts_of(open_program(str(form.path))), ""
        except SparsifyError as error:
            why = str(error)
    return None, f"The weights are not listed: {why}."


def _is_onnx(form: Format) -> bool:
    return (form.path / "model.onnx").is_file()
