"""The affine map from a photo to one model input, fitted to what the four synthetic photos became."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.synthetic_photos import LEVELS, decoded
from attnhook.options import Size

Array = NDArray[np.float32]
Line = tuple[float, float]
"""Slope and start: `photo coordinate = start + slope * input coordinate` along one axis, in pixels."""

_AXES = ("vertically", "horizontally")
REMEDY = "Leave that step out, or let your preprocessing return (pixels, ImageGeometry)."
_RESIDUAL = 0.35
"""How far the average of a block may be off the straight line, in input pixels, photo pixels or grey levels, whichever is the coarsest.

Resampling, dither and 8-bit rounding leave 0.03 to 0.15; turning a 224-pixel input by one degree leaves 2, gamma 2.2 leaves 10."""
_AGREEMENT = 0.3
"""How far two maps may place one pixel apart, in the same units. Exact steps and their measurement usually differ by less than 0.1; another
rounding of a crop shows as 1."""
_BEYOND = 2.0  # input or photo pixels, whichever are larger
_SNAP = 0.15  # input pixels: resizes and borders are whole, so an edge this near a whole pixel is there
_BLOCKS = 8
_SHOWN = 0.5  # share of the largest gain from which a pixel shows photo: where bilinear resampling puts an edge
_BLANK = 0.02  # share of the largest gain in all inputs below which an input is padding alone
_BOXED = 0.98  # share of the box around the shown pixels that must be shown
_FEWEST = 4  # pixels along an axis
_MOST = 768  # pixels along an axis that are fitted; of larger inputs every second, third, ...


class UnmeasurableError(GeometryError):
    """The photo or the input has too few pixels to be measured, which neither confirms nor contradicts known steps."""


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The affine map from a photo to one model input: `input = photo * scale + offset`, (vertical, horizontal)."""

    input_size: Size  # for packed patches, of the picture that they tile
    scale: tuple[float, float]  # input pixels per photo pixel
    offset: tuple[float, float]  # where the photo's top left corner lies, in input pixels
    valid: tuple[float, float, float, float]  # top, left, bottom, right of what shows photo, in input pixels
    unit: tuple[float, float]  # what the measurement resolves, in input pixels


def map_from_lines(
    lines: Sequence[Line], input_size: Size, size: Size, shown: Sequence[int] | None = None
) -> AffineMap:
    """Turn a line per axis into a map, on whole pixels where both ends of the photo are near those."""
    scale, offset, first_shown, last_shown = [], [], [], []
    for axis, (slope, start) in enumerate(lines):
        length, edge = size[axis], input_size[axis]
        first, last = -start / slope, (length - start) / slope
        if abs(first - round(first)) <= _SNAP and abs(last - round(last)) <= _SNAP and round(last) > round(first):
            first, last = float(round(first)), float(round(last))
            factor = (last - first) / length
        else:
            factor = 1 / slope
        # `shown`, the box that depends on the photo (None: all), is within a pixel of the edge, of photo or input.
        near = max(1.0, factor)
        low, high = (0, edge) if shown is None else (shown[axis], shown[axis + 2])
        scale.append(factor)
        offset.append(first)
        first_shown.append(max(first, 0.0) if first > low - near else float(low))
        last_shown.append(min(last, float(edge)) if last < high + near else float(high))
    unit = _unit_of(lines[0][0], size[0]), _unit_of(lines[1][0], size[1])
    valid = first_shown[0], first_shown[1], last_shown[0], last_shown[1]
    return AffineMap(input_size, (scale[0], scale[1]), (offset[0], offset[1]), valid, unit)


def _unit_of(slope: float, length: int) -> float:
    """What a ramp resolves, in input pixels: an input pixel, a photo pixel or a grey level, whichever is the coarsest."""
    return max(1.0, 1 / slope, length / LEVELS / slope)


def fitted_line(values: NDArray[np.float64], at: NDArray[Any]) -> Line:
    """Fit a line by least squares; NaN where there are too few points."""
    off = at - at.mean()
    slope = float(off @ (values - values.mean()) / (off @ off))
    return slope, float(values.mean() - slope * at.mean())


def check_straight(residual: NDArray[Any], slope: float, length: int, axis: int) -> None:
    """Refuse coordinates `(rows, columns)` that are off a line, on average over up to 8 x 8 blocks of four rows and columns or more."""
    for along in (0, 1):
        count = max(1, min(_BLOCKS, residual.shape[along] // _FEWEST))
        edges = np.linspace(0, residual.shape[along], count + 1).astype(int)
        sums = np.add.reduceat(residual, edges[:-1], axis=along)
        residual = sums / np.expand_dims(np.diff(edges), 1 - along)
    worst, allowed = float(np.abs(residual).max()) / slope, _RESIDUAL * _unit_of(slope, length)
    if not worst <= allowed:
        raise _not_affine(f"points up to {worst:.2f} input pixels off {_AXES[axis]}, more than {allowed:.2f}")


def _not_affine(seen: str) -> GeometryError:
    return GeometryError(
        f"cannot follow the preprocessing: expected a straight line per axis between photo and input, got {seen}. It flips, rotates or warps "
        f"the photo, or changes its brightness by more than a factor and an offset. {REMEDY}"
    )


def agree(exact: Any, measured: AffineMap) -> bool:
    """Compare the map of known steps with a measured one."""
    if exact.input_size != measured.input_size:
        return False
    for axis in (0, 1):
        slack = _AGREEMENT * measured.unit[axis]
        for end in (axis, axis + 2):
            edge = exact.valid[end]
            on_photo = (edge - exact.offset[axis]) / exact.scale[axis]
            off = on_photo * measured.scale[axis] + measured.offset[axis] - edge
            if abs(off) > slack or abs(edge - measured.valid[end]) > 1 + slack:
                return False
    return True


def fitted_picture(black: Array, white: Array, ramps: Sequence[Array], size: Size, peak: float) -> AffineMap | None:
    """Find where a picture `(channels, height, width)` shows the photo; None where it is padding alone."""
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
    share = float((power > _SHOWN**2 * power.max()).mean())
    if share < _BOXED:
        raise GeometryError(
            f"cannot follow the preprocessing: expected the photo in one upright box of the input, got a box of which {share:.0%} shows photo. "
            f"It rotates, warps or masks the photo. {REMEDY}"
        )
    power = np.maximum(power, np.float32(np.finfo(np.float32).tiny))
    seen = [
        decoded(np.einsum("chw,chw->hw", gain, ramp[:, rows, columns] - dark) / power) * length
        for ramp, length in zip(ramps, size, strict=True)
    ]
    at = [np.arange(first + 0.5, last, stride, dtype=np.float64) for first, last in ((top, bottom), (left, right))]
    lines = _fitted_lines(seen, at, size)
    for axis, line in enumerate(lines):
        _check_on_photo(seen[axis].mean(1 - axis), line, at[axis], size[axis], axis)
    return map_from_lines(lines, shape, size, box)


def _check_on_photo(shown: Array, line: Line, at: NDArray[np.float64], length: int, axis: int) -> None:
    """Refuse a line that goes on beyond the photo's ends, where there is nothing to show: brightness is shifted, as by rounding down.

    A border that repeats or mirrors the photo does not follow the line there, and single pixels at an edge may ring.
    """
    slope, start = line
    ends = start + slope * at[[0, -1]]
    before = min(-ends[0], -float(np.median(shown[:3])))
    after = min(ends[1], float(np.median(shown[-3:]))) - length
    off = max(before, after) / max(1.0, slope)
    if off > _BEYOND:
        raise _not_affine(f"points {off:.1f} pixels beyond the photo's end {_AXES[axis]}")


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
            raise _not_affine(f"a slope of {slope:.3g} along axis {axis}")
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
    for rise, length in (([down, down_across], size[0]), ([across_down, across], size[1])):
        if np.abs(np.multiply(rise, reach)).max() < 0.1 * length / LEVELS:
            raise _not_affine("brightness that does not change along a ramp")
    if abs(down_across) > abs(down) and abs(across_down) > abs(across):
        raise _not_affine("the photo's rows along the input's columns: it is transposed or turned by about 90 degrees")
    if ways := [way for way, slope in (("top to bottom", down), ("left to right", across)) if slope < 0]:
        raise _not_affine(f"the photo mirrored {' and '.join(ways)}")
    for along, slope, cross, length in ((1, down, down_across, size[0]), (0, across, across_down, size[1])):
        if slope <= 0 or abs(cross) * reach[along] / 2 > _RESIDUAL * _unit_of(slope, length) * slope:
            angle = np.degrees(np.arctan2(abs(cross), slope))
            raise _not_affine(f"the photo turned or sheared by about {angle:.1f} degrees")


def _middle(count: int) -> slice:
    quarter = count // 4 if count >= 2 * _FEWEST else 0
    return slice(quarter, count - quarter)


def _inner(at: NDArray[np.float64], slope: float, start: float, length: int) -> slice | None:
    """The pixels that are off the photo's borders by more than a resampling kernel, or None where too few are."""
    margin = min(3 * max(1.0, slope) + 1, length / 4)
    shown = start + slope * at
    inside = np.flatnonzero((shown > margin) & (shown < length - margin))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) >= _FEWEST else None
