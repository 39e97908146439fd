"""What was asked of an extraction: everything that changes a number that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from attnhook.attribution.methods import METHODS
from attnhook.options import BlocksOption, HeadFusion, RowsOption, choose


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
        blocks: Which blocks, as in `AttentionCapture`; a negative number is that one block.
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
    heads: HeadFusion | None
    methods: tuple[str, ...]
    statistics: bool
    dtype: StoredType
    batch_size: int
    shard_size: int
    device: str

    @property
    def chosen_blocks(self) -> BlocksOption:
        """`blocks` as `AttentionCapture` takes it."""
        blocks = self.blocks
        return [blocks] if isinstance(blocks, int) and not isinstance(blocks, bool) and blocks < 0 else blocks

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


def make_settings(
    *,
    rows: RowsOption,
    blocks: BlocksOption,
    heads: str | None,
    methods: Sequence[str],
    statistics: bool,
    dtype: str,
    batch_size: int,
    shard_size: int,
    device: str,
) -> Settings:
    """Check what a user asked for.

    Args:
        rows: As in `Settings`.
        blocks: As in `Settings`.
        heads: As in `Settings`.
        methods: As in `Settings`.
        statistics: As in `Settings`.
        dtype: As in `Settings`.
        batch_size: As in `Settings`.
        shard_size: As in `Settings`.
        device: As in `Settings`.

    Returns:
        The settings.

    Raises:
        ValueError: If an option is none of its choices.
    """
    for name, value in {"batch_size": batch_size, "shard_size": shard_size}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"bad {name}: expected a whole number of at least 1, got {value!r}.")
    if isinstance(methods, str):
        methods = [methods]
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"unknown method: expected some of {', '.join(map(repr, METHODS))}, got {unknown[0]!r}.")
    if heads is not None and heads != HeadFusion.MEAN:
        raise ValueError(f"unknown heads: expected 'mean' or None to keep all, got {heads!r}.")
    return Settings(
        rows if isinstance(rows, str) else tuple(rows),
        blocks,
        None if heads is None else HeadFusion.MEAN,
        tuple(dict.fromkeys(methods)),
        statistics,
        choose(StoredType, dtype, "dtype"),
        batch_size,
        shard_size,
        device,
    )
