"""Tables of means over photos: cells that hold a number with its error or interval, data frames, and CSV."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnhook.errors import MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame

_PARTS = ("value", "error", "low", "high", "n")
_DRAWS = 2000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A mean over photos, with its standard error and the 95 % bootstrap interval over photos, where known."""

    value: float | None
    n: int  # the number of photos
    error: float | None = None
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, Any]:
        """The known numbers, as the cell of a table."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def estimate(values: "Tensor | list[float]", *, interval: bool = False, seed: int = 0) -> Estimate:
    """Average over photos, leaving out NaN; the interval needs two photos."""
    known = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    known = known[~known.isnan()]
    count = len(known)
    if not count:
        return Estimate(None, 0)
    mean = float(known.mean())
    error = float(known.std() / math.sqrt(count)) if count > 1 else None
    if error is None or not interval:
        return Estimate(mean, count, error)
    drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(seed), device="cpu")
    low, high = torch.quantile(
        known[drawn].mean(dim=1), torch.tensor(_INTERVAL, dtype=torch.float64, device="cpu")
    ).tolist()
    return Estimate(mean, count, error, low, high)


@dataclass(frozen=True)
class Column:
    """One column."""

    key: str  # its name in data
    label: str  # its heading
    help: str = ""  # what it means, with its unit
    digits: int = 3  # decimal places shown


@dataclass(frozen=True)
class Table:
    """A table. Cells are None, text, a number, or an estimate: `{"value": ..., "error" | "low" and "high" | "n": ...}`."""

    id: str
    title: str
    note: str  # what a reader has to know
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]  # cells by column

    def frame(self) -> "DataFrame":
        """A data frame with a column for each part of an estimate, such as `auroc`, `auroc_error`, `auroc_n`, and NaN for missing numbers."""
        flat = []
        for row in self.rows:
            plain: dict[str, Any] = {}
            for column in self.columns:
                cell = row.get(column.key)
                parts = cell if isinstance(cell, dict) else {"value": cell}
                plain[column.key] = parts.get("value")
                plain |= {f"{column.key}_{part}": value for part, value in parts.items() if part != "value"}
            flat.append(plain)
        found = require_pandas().DataFrame(flat)
        return found.astype(dict.fromkeys(found.columns[found.isna().all()], float))  # only None: pandas says object

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return vars(self) | {"columns": [vars(column) for column in self.columns], "rows": list(self.rows)}


def as_csv(tables: "list[Table]") -> str:
    """All numbers of several tables, one per line."""
    lines = []
    for table in tables:
        for row in table.rows:
            name = " | ".join(str(row[c.key]) for c in table.columns if isinstance(row.get(c.key), str))
            for column in table.columns:
                cell = row.get(column.key)
                parts = {"value": cell} if isinstance(cell, int | float) else cell
                if isinstance(parts, dict):
                    lines.append([table.id, name, column.key, *map(parts.get, _PARTS)])
    frame = require_pandas().DataFrame(lines, columns=["table", "row", "column", *_PARTS], dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def require_pandas() -> Any:
    """Import pandas, which is an extra."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError(
            f'compare needs the package pandas, got {error}. Run `pip install ".[compare]"` in a clone.'
        ) from error
    return pandas
