"""What was asked of an extraction: everything that changes a number that it writes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from attnhook.attribution.methods import check_method
from attnhook.options import BlocksOption, HeadFusion, RowsOption


class StoredType(StrEnum):
    """How rows are stored.

    `FLOAT16` is within 1 in 2,048 of each value (and within 3e-8 of the smallest), `FLOAT32` exact, `UINT8` within 1/510 of each row's largest.
    """

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    UINT8 = "uint8"


@dataclass(frozen=True)
class Settings:
    """Settings of one extraction.

    Attributes:
        rows: Whose rows, as in `AttentionCapture`.
        blocks: Which blocks, as in `AttentionCapture`.
        heads: `"mean"` fuses the heads, None keeps them.
        methods: Names of `METHODS` whose maps are stored, too.
        statistics: Whether statistics of the rows are stored.
        dtype: How rows are stored.
        batch_size: Photos a forward; part of the settings because it may change the last bit.
        shard_size: About how many photos make a shard.
        device: `"cpu"`, `"cuda"`.
    """

    rows: RowsOption
    blocks: BlocksOption
    heads: str | None
    methods: tuple[str, ...]
    statistics: bool
    dtype: StoredType
    batch_size: int
    shard_size: int
    device: str

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("shard_size", self.shard_size)
        for name in self.methods:
            check_method(name)
        if self.heads not in (None, HeadFusion.MEAN):
            raise ValueError(f"unknown heads: expected 'mean' or None to keep all, got {self.heads!r}.")

    def as_json(self) -> dict[str, Any]:
        """What the manifest says; blocks are named there apart."""
        rows = (
            self.rows
            if isinstance(self.rows, str)
            else [list(row) if isinstance(row, tuple) else row for row in self.rows]
        )
        return {
            "rows": rows,
            "heads": self.heads,
            "methods": list(self.methods),
            "statistics": self.statistics,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
            "device": self.device,
        }


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"bad {name}: expected a whole number of at least {least}, got {value!r}.")
