"""Attention rows as they are stored, and back."""

import torch
from torch import Tensor

from attnhook.extraction.settings import StoredType

_LEVELS = 255


def encode(rows: Tensor, dtype: StoredType) -> tuple[Tensor, Tensor | None]:
    """Rows as they are stored.

    Args:
        rows: `(..., keys)` float32, not negative.

    Returns:
        `(..., keys)` of that type; for `uint8` also what one level is worth, `(..., 1)` float32: each row's largest value over 255.
    """
    if dtype is not StoredType.UINT8:
        return rows.to(torch.float16 if dtype is StoredType.FLOAT16 else torch.float32), None
    scales = rows.amax(dim=-1, keepdim=True) / _LEVELS
    levels = torch.where(scales > 0, rows / scales, 0.0)
    return levels.round_().clamp_(max=_LEVELS).to(torch.uint8), scales


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """Undo `encode`.

    Args:
        stored: `(..., keys)`.

    Returns:
        `(..., keys)` float32.
    """
    return stored.float() if scales is None else stored.float() * scales
