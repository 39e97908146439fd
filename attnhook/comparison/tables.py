"""Tables of numbers that know their units: rows of plain values, pandas where it is installed, CSV, and cells with their errors."""

import csv
import importlib
import io
from dataclasses import dataclass
from typing import Any

Cell = Any
"""None, text, a number, or `{"value": ..., "error" | "low" and "high" | "n": ...}`."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Its name in data.
        label: Its heading.
        help: What it means, with its unit.
        digits: How many a number is shown with behind the point.
    """

    key: str
    label: str
    help: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        id: Short name.
        title: Heading.
        note: What a reader has to know.
        columns: The columns.
        rows: Cells by column.
    """

    id: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Cell], ...]

    def flat(self) -> list[dict[str, Any]]:
        """Rows of plain values: an estimate takes a column for each of its parts, `auroc`, `auroc_error`, `auroc_n`."""
        found = []
        for row in self.rows:
            plain: dict[str, Any] = {}
            for column in self.columns:
                cell = row.get(column.key)
                if not isinstance(cell, dict):
                    plain[column.key] = cell
                    continue
                plain[column.key] = cell.get("value")
                plain |= {f"{column.key}_{part}": value for part, value in cell.items() if part != "value"}
            found.append(plain)
        return found

    def frame(self) -> Any:
        """A pandas DataFrame of `flat()`, with NaN where there is no number; the list itself where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            return self.flat()
        found = pandas.DataFrame(self.flat())
        return found.astype(
            dict.fromkeys(found.columns[found.isna().all()], float)
        )  # a column of None alone is no number to pandas

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        columns = [vars(column) for column in self.columns]
        return {"id": self.id, "title": self.title, "note": self.note, "columns": columns, "rows": list(self.rows)}


def as_csv(tables: "list[Table]") -> str:
    """All numbers of several tables, one a line."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    parts = ("value", "error", "low", "high", "n")
    writer.writerow(["table", "row", "column", *parts])
    for table in tables:
        for row in table.rows:
            name = " | ".join(str(row[c.key]) for c in table.columns if isinstance(row.get(c.key), str))
            for column in table.columns:
                cell = row.get(column.key)
                if isinstance(cell, int | float):
                    cell = {"value": cell}
                if isinstance(cell, dict):
                    writer.writerow([table.id, name, column.key, *(cell.get(part, "") for part in parts)])
    return written.getvalue()
