"""Splits what a preprocessing made into pictures and sequences of packed patches, one per model input."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.options import Size

Array = NDArray[np.float32]
_CHANNELS = (1, 3, 4)


def views_of(inputs: ModelInputs) -> list[Array]:
    """Split the pixels into the inputs that the model sees.

    Returns:
        One array per input: `(channels, height, width)` for a picture, `(patches, numbers)` for packed patches.
    """
    pixels = inputs.pixels.detach()
    if pixels.is_complex() or pixels.numel() == 0:
        raise _bad_shape(pixels)
    pixels = pixels.to("cpu", torch.float32)
    if not pixels.isfinite().all():
        raise GeometryError(
            "cannot follow the preprocessing: expected finite pixels, got NaN or infinity. Does it divide by a standard deviation of 0?"
        )
    views = _packed_views(pixels, inputs)
    return [view.numpy() for view in (_pictures(pixels) if views is None else views)]


def grid_of(inputs: ModelInputs) -> Size | None:
    """Read the grid that packed patches come with."""
    for name in ("image_grid_thw", "image_grid_hw"):
        grid = (inputs.keywords or {}).get(name)
        if isinstance(grid, Tensor) and grid.dim() == 2 and len(grid) == 1:
            return int(grid[0, -2]), int(grid[0, -1])
    return None


def _packed_views(pixels: Tensor, inputs: ModelInputs) -> list[Tensor] | None:
    """One `(patches, numbers)` per input, or None for pictures."""
    keywords = inputs.keywords or {}
    inkling = pixels.dim() == 5 and "num_patches" in keywords and pixels.shape[-1] in _CHANNELS  # with a frame axis
    if inkling or "image_grid_thw" in keywords or "image_grid_hw" in keywords:
        return [pixels.reshape(len(pixels), -1)]
    counts, side = keywords.get("target_sizes"), pixels.shape[-2] if pixels.dim() == 4 else 0
    if isinstance(counts, Tensor) and side and len(pixels) == 1:  # MiniCPM-V: the patches of all inputs side by side
        lengths: list[Any] = counts.prod(-1).tolist()
        if sum(lengths) * side == pixels.shape[-1]:
            return list(torch.split(pixels[0].unfold(-1, side, side).permute(2, 0, 1, 3).flatten(1), lengths))
    if not inputs.packed or (pixels.dim() > 3 and pixels.shape[-3] in _CHANNELS):
        return None
    if pixels.dim() == 2:
        return [pixels]
    return [one.reshape(len(one), -1) for one in pixels]


def _pictures(pixels: Tensor) -> list[Tensor]:
    """One `(channels, height, width)` per picture; a batch of sequences that nothing marks as packed stays one."""
    if pixels.dim() == 2:
        return [pixels[None]]
    if pixels.dim() == 3 and pixels.shape[0] not in _CHANNELS:
        return list(pixels)
    if pixels.dim() > 3 and pixels.shape[-3] not in _CHANNELS and pixels.shape[-1] in _CHANNELS:
        pixels = pixels.movedim(-1, -3)
    if pixels.dim() < 3 or pixels.shape[-3] not in _CHANNELS:
        raise _bad_shape(pixels)
    return list(pixels.reshape(-1, *pixels.shape[-3:]))


def _bad_shape(pixels: Tensor) -> GeometryError:
    return GeometryError(
        "cannot follow the preprocessing: expected pixels (inputs, 1 | 3 | 4, height, width) or packed patches, got shape "
        f"{tuple(pixels.shape)} of {pixels.dtype}. Return what you pass to the model, channels first."
    )
