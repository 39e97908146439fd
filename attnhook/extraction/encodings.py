"""How attention rows are stored."""

from enum import StrEnum

import torch
from torch import Tensor

_LEVELS = 255


class StoredType(StrEnum):
    """The type that rows are stored in.

    `FLOAT16` is within 1 in 2,048 of each value (and within 3e-8 of the smallest), `FLOAT32` exact, `UINT8` within 1/510 of each row's largest.
    """

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    UINT8 = "uint8"


def encode(rows: Tensor, dtype: StoredType) -> tuple[Tensor, Tensor | None]:
    """Convert rows `(..., keys)`, float32 and not negative, to the stored type.

    For `uint8`, also returns the value of one level, `(..., 1)` float32: each row's largest value over 255.
    """
    if dtype is not StoredType.UINT8:
        return rows.to(torch.float16 if dtype is StoredType.FLOAT16 else torch.float32), None
    scales = rows.amax(dim=-1, keepdim=True) / _LEVELS
    levels = torch.where(scales > 0, rows / scales, 0.0)
    return levels.round_().clamp_(max=_LEVELS).to(torch.uint8), scales


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """Undo `encode`, in float32."""
    return stored.float() if scales is None else stored.float() * scales
