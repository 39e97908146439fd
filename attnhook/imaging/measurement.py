"""Measures where a preprocessing puts a photo, by looking at what it makes of four synthetic ones.

A black and a white photo say how brightness comes out at every input pixel, and which pixels are padding. Two ramps then say which point of
the photo every input pixel shows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.affine_maps import REMEDY, AffineMap, Array, fitted_picture
from attnhook.imaging.model_inputs import ModelInputs, as_inputs
from attnhook.imaging.packed_patches import fitted_patches
from attnhook.imaging.repeatability import check_repeats, untouched_generators
from attnhook.imaging.synthetic_photos import constant_photo, ramp_photo
from attnhook.options import Size

_CHANNELS = (1, 3, 4)
_NO_GAIN = 1e-4  # of the largest pixel: brightness that is standardised per image, and what rounding leaves of it


def measure(
    call: Callable[[Image.Image], Any], size: Size, *, repeats: int = 8, patch_side: int | None = None
) -> tuple[AffineMap | None, ...] | None:
    """Measure a preprocessing on photos of one size: one map per input, None for padding; None if it returns the geometry itself."""
    with untouched_generators() as drew:
        made: list[list[Array]] = []
        for make, what in ((constant_photo, 0), (constant_photo, 255), (ramp_photo, 0), (ramp_photo, 1)):
            inputs = as_inputs(call(make(size, what)))  # one at a time: the next one takes over the memory
            if inputs.geometry is not None:
                return None
            made.append(_views(inputs))
        if repeats or drew():
            check_repeats(lambda photo: as_inputs(call(photo)), size, repeats=max(repeats, 1), drew=drew)
    shapes = [[view.shape for view in views] for views in made]
    if different := next((other for other in shapes if other != shapes[0]), None):
        raise GeometryError(
            "cannot follow the preprocessing: expected inputs whose size depends on the photo's size alone, got "
            f"{shapes[0]} from a black photo and {different} from another one. Leave out the step that is random or looks at the photo."
        )
    return _fitted(made, size, patch_side, _known_grid(inputs))


def _fitted(
    made: list[list[Array]], size: Size, patch_side: int | None, grid: Size | None
) -> tuple[AffineMap | None, ...]:
    gains = [float(np.abs(light - dark).max()) for dark, light in zip(*made[:2], strict=True)]
    largest = max(float(np.abs(view).max()) for view in (*made[0], *made[1]))
    if max(gains) <= _NO_GAIN * largest:
        if all(np.array_equal(first, other) for first, *others in zip(*made, strict=True) for other in others):
            raise GeometryError(
                "cannot follow the preprocessing: expected pixels that depend on the photo, got the same ones from a black, a white and two "
                "grey photos. Let it return pixels made from the photo that it is called with."
            )
        raise GeometryError(
            "cannot follow the preprocessing: expected a white photo to come out brighter than a black one, got pixels that differ by at most "
            f"{max(gains):.3g}. It standardises the brightness of each photo. {REMEDY}"
        )
    maps: list[AffineMap | None] = []
    for gain, dark, light, *ramps in zip(gains, *made, strict=True):
        if gain <= _NO_GAIN * max(gains):
            maps.append(None)
        elif dark.ndim == 2:
            maps.append(fitted_patches(dark, light, ramps, size, known_side=patch_side, known_grid=grid))
        else:
            maps.append(fitted_picture(dark, light, ramps, size, max(gains)))
    return tuple(maps)


def _views(inputs: ModelInputs) -> list[Array]:
    """One array per input: `(channels, height, width)` for a picture, `(patches, numbers)` for packed patches."""
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


def _known_grid(inputs: ModelInputs) -> Size | None:
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
    # MiniCPM-V: the patches of all inputs side by side.
    if isinstance(counts, Tensor) and counts.dim() == 2 and side and len(pixels) == 1:
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
