"""Takes what a preprocessing made apart into pictures and sequences of packed patches, one per model input."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.model_inputs import ModelInputs

Array = NDArray[np.float32]
_CHANNELS = (1, 3, 4)


def views_of(inputs: ModelInputs) -> list[Array]:
    """Split the pixels into the inputs that the model sees.

    Returns:
        One array per input: `(channels, height, width)` for a picture, `(patches, numbers)` for packed patches.
    """
    pixels = inputs.pixels.detach()
    if pixels.is_complex() or pixels.numel() == 0:
        raise _shapeless(pixels)
    pixels = pixels.to("cpu", torch.float32)
    if not np.isfinite(pixels.numpy()).all():
        raise GeometryError(
            "cannot follow the preprocessing: expected finite pixels, got NaN or infinity. Look for a division by a standard deviation of 0."
        )
    if (strips := _strips(pixels, inputs)) is not None:
        return strips
    if inputs.packed:
        return _packed(pixels, inputs)
    if pixels.dim() == 2:
        return [pixels[None].numpy()]
    if pixels.dim() == 3 and pixels.shape[0] not in _CHANNELS:
        return [one.numpy() for one in pixels]  # a batch of packed patches that nothing else tells
    if pixels.dim() < 3:
        raise _shapeless(pixels)
    if pixels.shape[-3] not in _CHANNELS and pixels.shape[-1] in _CHANNELS:
        pixels = pixels.movedim(-1, -3)
    if pixels.shape[-3] not in _CHANNELS:
        raise _shapeless(pixels)
    return [one.numpy() for one in pixels.reshape(-1, *pixels.shape[-3:])]


def grid_of(inputs: ModelInputs) -> tuple[int, int] | None:
    """Read the grid that packed patches come with."""
    for name in ("image_grid_thw", "image_grid_hw"):
        grid = (inputs.keywords or {}).get(name)
        if isinstance(grid, Tensor) and grid.dim() == 2 and len(grid) == 1:
            return int(grid[0, -2]), int(grid[0, -1])
    return None


def _packed(pixels: Tensor, inputs: ModelInputs) -> list[Array]:
    keywords = inputs.keywords or {}
    if "image_grid_thw" in keywords or "image_grid_hw" in keywords:  # all patches in one row, whatever a patch is
        return [pixels.reshape(len(pixels), -1).numpy()]
    if pixels.dim() == 2:
        return [pixels.numpy()]
    if pixels.dim() == 3:
        return [one.numpy() for one in pixels]
    if pixels.shape[-3] in _CHANNELS:  # pictures after all
        return [one.numpy() for one in pixels.reshape(-1, *pixels.shape[-3:])]
    return [one.reshape(len(one), -1).numpy() for one in pixels]


def _strips(pixels: Tensor, inputs: ModelInputs) -> list[Array] | None:
    """MiniCPM-V lays the patches of all its inputs side by side; `target_sizes` counts them. Inkling adds a frame axis to each."""
    keywords = inputs.keywords or {}
    if pixels.dim() == 5 and "num_patches" in keywords and pixels.shape[-1] in _CHANNELS:
        return [pixels.reshape(len(pixels), -1).numpy()]
    grids = keywords.get("target_sizes")
    if not isinstance(grids, Tensor) or pixels.dim() != 4 or len(pixels) != 1:
        return None
    side = pixels.shape[-2]
    counts: list[Any] = [int(count) for count in grids.prod(-1)]
    if sum(counts) * side != pixels.shape[-1]:
        return None
    patches = pixels[0].unfold(-1, side, side).permute(2, 0, 1, 3).flatten(1)
    return [part.numpy() for part in torch.split(patches, counts)]


def _shapeless(pixels: Tensor) -> GeometryError:
    return GeometryError(
        "cannot follow the preprocessing: expected pixels of shape (inputs, 1 | 3 | 4, height, width), or packed patches, got "
        f"{tuple(pixels.shape)} of {pixels.dtype}. Return what the model is fed, channels first."
    )
