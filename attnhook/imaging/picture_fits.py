"""Fits the affine map of one picture to what the four synthetic photos became."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.affine_maps import (
    REMEDY,
    AffineMap,
    Line,
    UnmeasurableError,
    check_straight,
    fitted_line,
    map_from_lines,
    not_affine,
    tolerance,
)
from attnhook.imaging.synthetic_photos import LEVELS, decoded
from attnhook.options import Size

Array = NDArray[np.float32]

_SHOWN = 0.5  # share of the largest gain from which a pixel shows photo: where bilinear resampling puts an edge
_BLANK = 0.02  # share of the largest gain in all inputs below which an input is padding alone
_BOXED = 0.98  # share of the box around the shown pixels that must be shown
_FEWEST = 4  # pixels along an axis
_MOST = 768  # pixels along an axis that are fitted; of larger inputs every second, third, ...


def fitted_picture(black: Array, white: Array, ramps: Sequence[Array], size: Size, peak: float) -> AffineMap | None:
    """Find where a picture shows the photo; None where it is padding alone.

    Args:
        black: `(channels, height, width)`: what a black photo became.
    """
    shape: Size = (black.shape[-2], black.shape[-1])
    stride = max(1, max(shape) // _MOST)
    box = _shown_box(black, white, stride, peak)
    if box is None:
        return None
    top, left, bottom, right = box
    if min(bottom - top, right - left, *size) < _FEWEST:
        raise UnmeasurableError(
            f"cannot measure which part of the photo the input shows: expected {_FEWEST} pixels or more along both axes, got a photo of "
            f"{size[0]} x {size[1]} pixels on {bottom - top} x {right - left} pixels of the input. Use a larger photo, or let your "
            "preprocessing return (pixels, ImageGeometry)."
        )
    rows, columns = slice(top, bottom, stride), slice(left, right, stride)
    dark = black[:, rows, columns]
    gain = white[:, rows, columns] - dark
    power = np.einsum("chw,chw->hw", gain, gain)
    _check_box(power)
    power = np.maximum(power, np.float32(np.finfo(np.float32).tiny))
    seen = [
        decoded(np.einsum("chw,chw->hw", gain, ramp[:, rows, columns] - dark) / power) * length
        for ramp, length in zip(ramps, size, strict=True)
    ]
    at = [np.arange(first + 0.5, last, stride, dtype=np.float64) for first, last in ((top, bottom), (left, right))]
    return map_from_lines(_fitted_lines(seen, at, size), shape, size, box)


def _shown_box(black: Array, white: Array, stride: int, peak: float) -> tuple[int, int, int, int] | None:
    """The box around the pixels in which a black and a white photo differ: top, left, bottom, right."""
    across = np.abs(white[..., ::stride] - black[..., ::stride]).max(0)
    along = across if stride == 1 else np.abs(white[:, ::stride] - black[:, ::stride]).max(0)
    own = max(float(across.max()), float(along.max()))
    if own < _BLANK * peak:
        return None
    shares = (across > _SHOWN * own).mean(1), (along > _SHOWN * own).mean(0)
    rows, columns = (np.flatnonzero(share > 0.1 * share.max()) for share in shares)
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _check_box(power: Array) -> None:
    share = float((power > _SHOWN**2 * float(power.max())).mean())
    if share < _BOXED:
        raise GeometryError(
            f"cannot follow the preprocessing: expected the photo in one upright box of the input, got a box of which {share:.0%} shows photo. "
            f"It rotates, warps or masks the photo. {REMEDY}"
        )


def _fitted_lines(seen: Sequence[Array], at: Sequence[NDArray[np.float64]], size: Size) -> list[Line]:
    """Fit one line per axis to the middle, then to all but the photo's borders, where resampling looks beyond the photo."""
    middle = part = tuple(_middle(len(centres)) for centres in at)
    _check_upright([values[part] for values in seen], [at[axis][part[axis]] for axis in (0, 1)], size)
    lines = [_line_along(axis, seen[axis][part], at[axis][part[axis]]) for axis in (0, 1)]
    for _ in range(2):
        part = tuple(_inner(at[axis], *lines[axis], size[axis]) or middle[axis] for axis in (0, 1))
        lines = [_line_along(axis, seen[axis][part], at[axis][part[axis]]) for axis in (0, 1)]
    for axis, (slope, start) in enumerate(lines):
        if slope <= 0:
            raise not_affine(f"a slope of {slope:.3g} along axis {axis}")
        straight = start + slope * at[axis][part[axis]]
        check_straight(seen[axis][part] - np.expand_dims(straight, 1 - axis), slope, size[axis], axis)
    return lines


def _line_along(axis: int, values: NDArray[Any], at: NDArray[np.float64]) -> Line:
    return fitted_line(values.mean(1 - axis, dtype=np.float64), at)


def _check_upright(seen: Sequence[Array], at: Sequence[NDArray[np.float64]], size: Size) -> None:
    """Refuse what is mirrored, turned or uncalibrated, by the slopes of a plane for each ramp."""
    (down, down_across), (across_down, across) = (
        [_line_along(axis, values, at[axis])[0] for axis in (0, 1)] for values in seen
    )
    reach = [float(centres[-1] - centres[0]) for centres in at]
    if max(abs(down) * reach[0], abs(down_across) * reach[1]) < 0.1 * size[0] / LEVELS:
        raise not_affine("nothing that rises from the photo's top to its bottom")
    if max(abs(across) * reach[1], abs(across_down) * reach[0]) < 0.1 * size[1] / LEVELS:
        raise not_affine("nothing that rises from the photo's left to its right")
    if abs(down_across) > abs(down) and abs(across_down) > abs(across):
        raise not_affine("the photo's rows along the input's columns: it is transposed or turned by about 90 degrees")
    if ways := [way for way, slope in (("top to bottom", down), ("left to right", across)) if slope < 0]:
        raise not_affine(f"the photo mirrored {' and '.join(ways)}")
    for along, slope, cross, length in ((1, down, down_across, size[0]), (0, across, across_down, size[1])):
        if slope <= 0 or abs(cross) * reach[along] / 2 > tolerance(slope, length) * slope:
            angle = np.degrees(np.arctan2(abs(cross), slope))
            raise not_affine(f"the photo turned or sheared by about {angle:.1f} degrees")


def _middle(count: int) -> slice:
    quarter = count // 4 if count >= 2 * _FEWEST else 0
    return slice(quarter, count - quarter)


def _inner(at: NDArray[np.float64], slope: float, start: float, length: int) -> slice | None:
    """The pixels that are off the photo's borders by more than a resampling kernel, or None where too few are."""
    margin = min(3 * max(1.0, slope) + 1, length / 4)
    shown = start + slope * at
    inside = np.flatnonzero((shown > margin) & (shown < length - margin))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) >= _FEWEST else None
