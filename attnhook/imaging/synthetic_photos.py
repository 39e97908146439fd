"""Grey photos in which every pixel says where it is.

A ramp's brightness rises along one axis, along a parabola. The bend tells equalisation, contrast stretching and gamma from an affine change
of brightness, because only the latter leaves a straight line when the parabola is undone. A photo may be longer than there are grey levels.
Noise of a fixed seed then dithers them, so that averages over a few pixels resolve far less than one level at any stride of sampling.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnhook.options import Size

_SPAN = 185  # grey levels
_LOW = 20
_BEND = 0.4
LEVELS = _SPAN * (1 - _BEND)
"""Grey levels per length of the photo at a ramp's dark end, where they are fewest."""
_DITHER = 2  # levels; whole, so that rounding down keeps the mean
_BAND = 251  # pixels across the ramp after which the noise repeats; prime
_SMALL = 64


def constant_photo(size: Size, level: int) -> Image.Image:
    """Make a photo of one grey."""
    return Image.new("RGB", (size[1], size[0]), (level,) * 3)


def ramp_photo(size: Size, axis: int) -> Image.Image:
    """Make a photo whose brightness says how far along one axis a pixel is."""
    length, across = size[axis], min(_BAND, size[1 - axis])
    t = (np.arange(length, dtype=np.float32) + 0.5) / length
    levels = _LOW + _SPAN * ((1 - _BEND) * t + _BEND * t * t)
    if length <= LEVELS:  # a level or more per pixel: rounding alone is finer than noise
        pixels = np.broadcast_to(np.rint(levels).astype(np.uint8), (across, length))
    else:
        noise = np.random.default_rng(axis).random((across, length), dtype=np.float32)
        noise *= _DITHER
        noise += levels - (_DITHER - 1) / 2
        pixels = noise.astype(np.uint8)
    band = Image.fromarray(np.ascontiguousarray(pixels.T if axis == 0 else pixels)).convert("RGB")
    photo = Image.new("RGB", (size[1], size[0]), None)  # not filled: all of it is painted over
    for start in range(0, size[1 - axis], across):
        photo.paste(band, (start, 0) if axis == 0 else (0, start))
    return photo


def decoded(brightness: NDArray[Any]) -> NDArray[Any]:
    """Undo a ramp's brightness."""
    level = (brightness * 255 - _LOW) / _SPAN
    root = np.sqrt(np.maximum((1 - _BEND) ** 2 + 4 * _BEND * level, 0))
    found: NDArray[Any] = (root - (1 - _BEND)) / (2 * _BEND)
    return found


def small_size(size: Size) -> Size:
    """Shrink a size for tests that need many photos."""
    factor = min(1.0, _SMALL / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def coloured_photo(size: Size) -> Image.Image:
    """Make a photo with a different value everywhere: ramps of colour with a dark, coloured patch off the centre on a bright ground."""
    y, x = ((np.arange(length) + 0.5) / length for length in size)
    planes = [175 + 40 * np.add.outer(0 * y, x), 175 + 40 * np.add.outer(y, 0 * x), 215 - 20 * np.add.outer(y, x)]
    pixels = np.stack(planes, axis=-1)
    top, left, bottom, right = size[0] // 5, size[1] // 4, size[0] * 3 // 5 + 1, size[1] // 2 + 1
    pixels[top:bottom, left:right] -= 130
    return Image.fromarray(np.clip(pixels, 40, 215).astype(np.uint8))


def framed_photos(photo: Image.Image) -> list[Image.Image]:
    """Split a photo into one with a black margin and the margin alone, which add up to it, and into one with a white margin and the rest.

    Towards the margin they fade, because resampling overshoots at an edge, and 8 bits cut that off.
    """
    positions = [(np.arange(length) + 0.5) / length for length in (photo.height, photo.width)]
    inside = np.minimum.outer(*(np.clip((np.minimum(at, 1 - at) - 0.1) * 8, 0, 1) for at in positions))[..., None]
    pixels = np.asarray(photo)
    dark = np.rint(pixels * inside).astype(np.uint8)
    bright = 255 - np.rint((255 - pixels) * inside).astype(np.uint8)
    return [Image.fromarray(part) for part in (dark, pixels - dark, bright, pixels + (255 - bright))]
