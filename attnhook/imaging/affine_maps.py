"""The affine map from a photo to one model input: from fitted lines, and compared with steps that are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.synthetic_photos import LEVELS
from attnhook.options import Size

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
_SNAP = 0.15  # input pixels: resizes and borders are whole, so an edge this near a whole pixel is there
_BLOCKS = 8
_BLOCK = 4  # rows or columns


class UnmeasurableError(GeometryError):
    """The photo or the input has too few pixels to be measured, which neither confirms nor contradicts known steps."""


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The affine map from a photo to one model input: `input = photo * scale + offset`, per axis.

    Attributes:
        input_size: Height and width of the input, in pixels; for packed patches, of the picture that they tile.
        scale: Input pixels per photo pixel, (vertical, horizontal).
        offset: Where the photo's top left corner lies on the input, in input pixels.
        valid: Top, left, bottom, right of the part of the input that shows photo, in input pixels.
        unit: What the measurement resolves, in input pixels, (vertical, horizontal): see `unit_of`.
        patches: For packed patches: the centre (y, x) of every patch on the photo, in the order they came; NaN for padding.
        grid: For packed patches: row and column of every patch on the grid, in the order they came; -1 for padding.
    """

    input_size: Size
    scale: tuple[float, float]
    offset: tuple[float, float]
    valid: tuple[float, float, float, float]
    unit: tuple[float, float]
    patches: NDArray[np.float64] | None = None
    grid: NDArray[np.int64] | None = None


def map_from_lines(
    lines: Sequence[Line], input_size: Size, size: Size, shown: Sequence[int] | None = None, **patches: Any
) -> AffineMap:
    """Turn a line per axis into a map, on whole pixels where both ends of the photo are near those.

    Args:
        shown: Top, left, bottom, right of the part of the input that depends on the photo; None for all of it.
    """
    scale, offset, first_shown, last_shown = [], [], [], []
    for axis, (slope, start) in enumerate(lines):
        length, edge = size[axis], input_size[axis]
        first, last = -start / slope, (length - start) / slope
        if abs(first - round(first)) <= _SNAP and abs(last - round(last)) <= _SNAP and round(last) > round(first):
            first, last = float(round(first)), float(round(last))
            factor = (last - first) / length
        else:
            factor = 1 / slope
        near = max(1.0, factor)  # `shown` is within a pixel of the edge, of photo or input
        low, high = (0, edge) if shown is None else (shown[axis], shown[axis + 2])
        scale.append(factor)
        offset.append(first)
        first_shown.append(max(first, 0.0) if first > low - near else float(low))
        last_shown.append(min(last, float(edge)) if last < high + near else float(high))
    unit = unit_of(lines[0][0], size[0]), unit_of(lines[1][0], size[1])
    valid = first_shown[0], first_shown[1], last_shown[0], last_shown[1]
    return AffineMap(input_size, (scale[0], scale[1]), (offset[0], offset[1]), valid, unit, **patches)


def unit_of(slope: float, length: int) -> float:
    """Say what a ramp resolves, in input pixels: an input pixel, a photo pixel or a grey level, whichever is the coarsest."""
    return max(1.0, 1 / slope, length / LEVELS / slope)


def fitted_line(values: NDArray[np.float64], at: NDArray[Any]) -> Line:
    """Fit a line by least squares; NaN where there are too few points."""
    off = at - at.mean()
    slope = float(off @ (values - values.mean()) / (off @ off))
    return slope, float(values.mean() - slope * at.mean())


def check_straight(residual: NDArray[Any], slope: float, length: int, axis: int) -> None:
    """Refuse coordinates `(rows, columns)` that are off a line, on average over up to 8 x 8 blocks of four rows and columns or more."""
    for along in (0, 1):
        count = max(1, min(_BLOCKS, residual.shape[along] // _BLOCK))
        edges = np.linspace(0, residual.shape[along], count + 1).astype(int)
        sums = np.add.reduceat(residual, edges[:-1], axis=along)
        residual = sums / np.expand_dims(np.diff(edges), 1 - along)
    worst, allowed = float(np.abs(residual).max()) / slope, tolerance(slope, length)
    if not worst <= allowed:
        raise not_affine(f"points up to {worst:.2f} input pixels off {_AXES[axis]}, more than {allowed:.2f}")


def tolerance(slope: float, length: int) -> float:
    """How far the average of a block may be off a line, in input pixels."""
    return _RESIDUAL * unit_of(slope, length)


def not_affine(seen: str) -> GeometryError:
    """Make the error for a preprocessing that is no affine map."""
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
