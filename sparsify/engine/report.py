"""What each pass did: one row a pass; as a table for people and as JSON beside the export."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparsify.disk.files import write_json


@dataclass(frozen=True)
class Row:
    """One pass: how many places it changed, what stands afterwards, what it cost and moved.

    `zeros` counts zeros among the effective weights of the linears and experts; `move` is the largest
    change of an output on the sample inputs, relative to the largest output; `seconds` is the pass itself,
    `checking` what verifying and comparing took; `note` is what the pass itself has to say. A packed
    weight counts as the dense one it stands for.
    """

    name: str
    text: str
    places: int
    nodes: int
    parameters: int
    zeros: int
    seconds: float
    checking: float
    move: float
    note: str = ""

    def sentence(self) -> str:
        """What the pass did, without its name."""
        said = f"{self.places} places in {self.seconds:.2f} s, checked in {self.checking:.2f} s"
        return f"{said}; {self.note}" if self.note else said


@dataclass
class Report:
    """The rows of a run, in order."""

    rows: list[Row] = field(default_factory=list)

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        notes = "\n".join(f"{row.name}: {row.note}" for row in self.rows if row.note)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=notes or None)
        table.caption_justify = "left"
        for column in ("pass", "places", "nodes", "parameters", "zeros", "s", "checks", "moved"):
            table.add_column(column, justify="left" if column == "pass" else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.name,
                str(row.places),
                str(row.nodes),
                f"{row.parameters:,}",
                f"{row.zeros:,}",
                f"{row.seconds:.2f}",
                f"{row.checking:.2f}",
                f"{row.move:.0e}" if row.move else "0",
            )
        return table

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as JSON values."""
        return [asdict(row) for row in self.rows]

    def write(self, folder: Path) -> None:
        """Write `report.json` into a folder."""
        write_json(folder / "report.json", self.to_json())
