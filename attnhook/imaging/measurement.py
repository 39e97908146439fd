"""Measures where a preprocessing puts a photo, by looking at what it makes of four synthetic ones.

A black and a white photo say how brightness comes out at every input pixel, and which pixels are padding. Two ramps then say which point of
the photo every input pixel shows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.affine_maps import REMEDY, AffineMap
from attnhook.imaging.input_views import Array, grid_of, views_of
from attnhook.imaging.model_inputs import as_inputs
from attnhook.imaging.packed_patches import fitted_patches
from attnhook.imaging.picture_fits import fitted_picture
from attnhook.imaging.repeatability import check_repeats, untouched_generators
from attnhook.imaging.synthetic_photos import constant_photo, ramp_photo
from attnhook.options import Size

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
            made.append(views_of(inputs))
        if repeats or drew():
            check_repeats(lambda photo: as_inputs(call(photo)), size, repeats=max(repeats, 1), drew=drew)
    shapes = [[view.shape for view in views] for views in made]
    if different := next((other for other in shapes if other != shapes[0]), None):
        raise GeometryError(
            "cannot follow the preprocessing: expected inputs whose size depends on the photo's size alone, got "
            f"{shapes[0]} from a black photo and {different} from another one. Leave out the step that is random or looks at the photo."
        )
    return _fitted(made, size, patch_side, grid_of(inputs))


def _fitted(
    made: list[list[Array]], size: Size, patch_side: int | None, grid: Size | None
) -> tuple[AffineMap | None, ...]:
    gains = [float(np.abs(light - dark).max()) for dark, light in zip(*made[:2], strict=True)]
    largest = max(float(np.abs(view).max()) for view in (*made[0], *made[1]))
    if max(gains) <= _NO_GAIN * largest:
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
