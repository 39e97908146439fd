"""Measures where a preprocessing puts a photo, by looking at what it makes of four synthetic ones.

A black and a white photo say how brightness comes out at every input pixel, and which pixels are padding. Two ramps then say which point of
the photo every input pixel shows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.input_views import Array, grid_of, views_of
from attnhook.imaging.model_inputs import as_inputs
from attnhook.imaging.packed_patches import fitted_patches
from attnhook.imaging.picture_fits import REMEDY, fitted_picture
from attnhook.imaging.placements import Placement
from attnhook.imaging.repeating import check_repeats, untouched_generators
from attnhook.imaging.synthetic_photos import constant_photo, ramp_photo
from attnhook.options import Size

_NO_GAIN = 1e-4  # of the largest pixel: brightness that is standardised per image, and what rounding leaves of it


def measure(
    call: Callable[[Image.Image], Any], size: Size, *, repeats: int = 8, patch_side: int | None = None
) -> tuple[Placement | None, ...] | None:
    """Measure a preprocessing on photos of one size."""
    with untouched_generators() as drew:
        made = []
        for make, what in ((constant_photo, 0), (constant_photo, 255), (ramp_photo, 0), (ramp_photo, 1)):
            inputs = as_inputs(call(make(size, what)))  # one at a time: the next one takes over the memory
            if inputs.geometry is not None:
                return None
            made.append(views_of(inputs))
        if repeats or drew():
            check_repeats(lambda photo: as_inputs(call(photo)), size, repeats=max(repeats, 1), drew=drew)
    _check_shapes(made)
    return _placements(made, size, patch_side, grid_of(inputs))


def _placements(
    made: list[list[Array]], size: Size, patch_side: int | None, grid: Size | None
) -> tuple[Placement | None, ...]:
    black, white, *ramps = made
    gains = [float(np.abs(light - dark).max()) for dark, light in zip(black, white, strict=True)]
    largest = max(float(np.abs(one).max()) for one in (*black, *white))
    if max(gains) <= _NO_GAIN * largest:
        raise GeometryError(
            "cannot follow the preprocessing: expected a white photo to come out brighter than a black one, got pixels that differ by at most "
            f"{max(gains):.3g}. It standardises the brightness of each photo. {REMEDY}"
        )
    placements: list[Placement | None] = []
    for number, (dark, light, *sloped) in enumerate(zip(black, white, *ramps, strict=True)):
        if gains[number] <= _NO_GAIN * max(gains):
            placements.append(None)
        elif dark.ndim == 2:
            placements.append(fitted_patches(dark, light, sloped, size, known_side=patch_side, known_grid=grid))
        else:
            placements.append(fitted_picture(dark, light, sloped, size, max(gains)))
    return tuple(placements)


def _check_shapes(made: list[list[Array]]) -> None:
    shapes = [[one.shape for one in views] for views in made]
    if any(other != shapes[0] for other in shapes):
        different = next(other for other in shapes if other != shapes[0])
        raise GeometryError(
            "cannot follow the preprocessing: expected inputs whose size depends on the photo's size alone, got "
            f"{shapes[0]} of a black photo and {different} of another one. Leave out the step that is random or looks at the photo's content."
        )
