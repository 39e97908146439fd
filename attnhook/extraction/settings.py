"""The settings of an extraction, everything that changes a number that it writes, and how rows are stored."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.methods import check_method
from attnhook.options import BlocksOption, HeadFusion, RowsOption

_LEVELS = 255


class StoredType(StrEnum):
    """The type that rows are stored in."""

    FLOAT16 = "float16"  # within 1 in 2,048 of each value (and within 3e-8 of the smallest)
    FLOAT32 = "float32"  # exact
    UINT8 = "uint8"  # within 1/510 of each row's largest


@dataclass(frozen=True)
class Settings:
    """Settings of one extraction, as in `extract`."""

    rows: RowsOption
    blocks: BlocksOption
    heads: str | None
    methods: tuple[str, ...]
    statistics: bool
    dtype: StoredType
    batch_size: int  # may change the last bit
    shard_size: int
    device: str  # "cpu" or "cuda"

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("shard_size", self.shard_size)
        for name in self.methods:
            check_method(name)
        if self.heads not in (None, HeadFusion.MEAN):
            raise ValueError(f"unknown heads: expected 'mean' or None to keep all, got {self.heads!r}.")

    def as_json(self) -> dict[str, Any]:
        """The settings in the manifest, which lists the blocks by name elsewhere."""
        return {name: value for name, value in vars(self).items() if name != "blocks"}


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"bad {name}: expected a whole number of at least {least}, got {value!r}.")


def encode(rows: Tensor, dtype: StoredType) -> tuple[Tensor, Tensor | None]:
    """Convert rows `(..., keys)`, float32 and not negative; for `uint8`, also return what one level is, `(..., 1)`."""
    if dtype is not StoredType.UINT8:
        return rows.to(torch.float16 if dtype is StoredType.FLOAT16 else torch.float32), None
    scales = rows.amax(dim=-1, keepdim=True) / _LEVELS
    levels = torch.where(scales > 0, rows / scales, 0.0)
    return levels.round_().clamp_(max=_LEVELS).to(torch.uint8), scales


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """Undo `encode`, in float32."""
    return stored.float() if scales is None else stored.float() * scales
