"""Fits where one picture lies in its photo to what the four synthetic photos became."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.placements import Placement, UnmeasurableError
from attnhook.imaging.synthetic_photos import LEVELS, decoded
from attnhook.options import Size

Array = NDArray[np.float32]

RESIDUAL = 0.35
"""How far the average of a block may lie off the straight line, in input pixels, photo pixels or grey levels, whichever is the coarsest.

Resampling, dither and 8-bit rounding leave 0.03 to 0.15; turning a 224-pixel input by one degree leaves 2, gamma 2.2 leaves 10."""
_SHOWN = 0.5  # share of the largest gain from which a pixel shows photo: where bilinear resampling puts an edge
_BLANK = 0.02  # share of the largest gain in all inputs below which an input is padding alone
_BOXED = 0.98  # share of the box around the shown pixels that must be shown
_FEWEST = 4  # pixels along an axis
_MOST = 768  # pixels along an axis that are fitted; of larger inputs every second, third, ...
_BLOCKS = 8
_SNAP = 0.15  # input pixels: resizes and borders are whole, so an edge this near a whole pixel is there
REMEDY = "Return (pixels, ImageGeometry) from a function of your own that knows, or leave the step out."


def fitted_picture(black: Array, white: Array, ramps: Sequence[Array], size: Size, peak: float) -> Placement | None:
    """Find where a picture lies.

    Args:
        black: `(channels, height, width)`: what a black photo became.
    """
    shape: Size = (black.shape[-2], black.shape[-1])
    stride = max(1, max(shape) // _MOST)
    box = _shown_box(black, white, stride, peak)
    if box is None:
        return None
    if min(box[2] - box[0], box[3] - box[1]) < _FEWEST or min(size) < _FEWEST:
        raise UnmeasurableError(
            f"cannot measure where the input lies in the photo: expected {_FEWEST} pixels or more along both axes, got an input that shows the "
            f"photo on {box[2] - box[0]} x {box[3] - box[1]} pixels, of a photo of {size[0]} x {size[1]}. Use a larger photo, or return "
            "(pixels, ImageGeometry)."
        )
    rows, columns = slice(box[0], box[2], stride), slice(box[1], box[3], stride)
    dark = black[:, rows, columns]
    gain = white[:, rows, columns] - dark
    power = np.einsum("chw,chw->hw", gain, gain)
    _check_box(power)
    power = np.maximum(power, np.float32(np.finfo(np.float32).tiny))
    seen = [
        decoded(np.einsum("chw,chw->hw", gain, ramp[:, rows, columns] - dark) / power) * length
        for ramp, length in zip(ramps, size, strict=True)
    ]
    at = [_centres(first, last, stride) for first, last in ((box[0], box[2]), (box[1], box[3]))]
    slopes, starts = _straight(seen, at, size)
    return _placed(slopes, starts, shape, size, box)


def unit_of(slope: float, length: int) -> float:
    """Say what a ramp resolves."""
    return max(1.0, 1 / slope, length / LEVELS / slope)


def whole_edges(slope: float, start: float, length: int) -> tuple[float, float]:
    """Find scale and offset, on whole pixels where both ends of the photo are near those."""
    ends = -start / slope, (length - start) / slope
    whole = [round(end) for end in ends]
    if all(abs(end - near) <= _SNAP for end, near in zip(ends, whole, strict=True)) and whole[1] > whole[0]:
        return (whole[1] - whole[0]) / length, float(whole[0])
    return 1 / slope, ends[0]


def block_means(values: NDArray[Any]) -> NDArray[Any]:
    """Average over up to 8 x 8 blocks, each of four rows and columns or more.

    Args:
        values: `(rows, columns)`.
    """
    for axis in (0, 1):
        count = max(1, min(_BLOCKS, values.shape[axis] // _FEWEST))
        edges = np.linspace(0, values.shape[axis], count + 1).astype(int)
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        values = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return values


def _shown_box(black: Array, white: Array, stride: int, peak: float) -> tuple[int, int, int, int] | None:
    """The box around the pixels in which a black and a white photo differ: first and last row and column, at pixel edges."""
    across = np.abs(white[..., ::stride] - black[..., ::stride]).max(0)
    along = across if stride == 1 else np.abs(white[:, ::stride] - black[:, ::stride]).max(0)
    own = max(float(across.max()), float(along.max()))
    if own < _BLANK * peak:
        return None
    rows, columns = (across > _SHOWN * own).mean(1), (along > _SHOWN * own).mean(0)
    shown = [np.flatnonzero(share > 0.1 * share.max()) for share in (rows, columns)]
    return int(shown[0][0]), int(shown[1][0]), int(shown[0][-1]) + 1, int(shown[1][-1]) + 1


def _check_box(power: Array) -> None:
    own = float(power.max())
    share = float((power > _SHOWN**2 * own).mean())
    if share < _BOXED:
        raise GeometryError(
            f"cannot follow the preprocessing: expected the photo in one upright box of the input, got a box of which {share:.0%} shows photo. "
            f"It turns, bends or masks the photo. {REMEDY}"
        )


def _straight(
    seen: Sequence[NDArray[np.float32]], at: Sequence[NDArray[np.float64]], size: Size
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Fit one line per axis to the middle, then to all but the photo's borders, where resampling looks beyond the photo."""
    middle = tuple(_middle(len(places)) for places in at)
    slopes = _checked_slopes([values[middle] for values in seen], [at[axis][middle[axis]] for axis in (0, 1)], size)
    lines = [
        _line(seen[axis][middle].mean(1 - axis, dtype=np.float64), at[axis][middle[axis]], slopes[axis])
        for axis in (0, 1)
    ]
    inner = middle
    for _ in range(2):
        inner = tuple(_inner(at[axis], *lines[axis], size[axis]) or middle[axis] for axis in (0, 1))
        lines = [_line(seen[axis][inner].mean(1 - axis, dtype=np.float64), at[axis][inner[axis]]) for axis in (0, 1)]
    for axis, (slope, start) in enumerate(lines):
        if slope <= 0:
            raise _crooked(f"a slope of {slope:.3g} along axis {axis}")
        straight = start + slope * at[axis][inner[axis]]
        off = seen[axis][inner] - np.expand_dims(straight, 1 - axis)
        worst = float(np.abs(block_means(off)).max()) / slope
        unit = unit_of(slope, size[axis])
        if not worst <= RESIDUAL * unit:
            name = ("vertically", "horizontally")[axis]
            raise _crooked(f"blocks up to {worst:.2f} input pixels off {name}, more than {RESIDUAL * unit:.2f}")
    return (lines[0][0], lines[1][0]), (lines[0][1], lines[1][1])


def _checked_slopes(
    seen: Sequence[NDArray[np.float32]], at: Sequence[NDArray[np.float64]], size: Size
) -> tuple[float, float]:
    """The slopes of a plane through the middle, refusing what is mirrored, turned or uncalibrated."""
    slopes = [[_slope(values.mean(1 - axis, dtype=np.float64), at[axis]) for axis in (0, 1)] for values in seen]
    (down, down_across), (across_down, across) = slopes
    reach = [float(places[-1] - places[0]) for places in at]
    if max(abs(down) * reach[0], abs(down_across) * reach[1]) < 0.1 * size[0] / LEVELS:
        raise _crooked("nothing that rises from the photo's top to its bottom")
    if max(abs(across) * reach[1], abs(across_down) * reach[0]) < 0.1 * size[1] / LEVELS:
        raise _crooked("nothing that rises from the photo's left to its right")
    if abs(down_across) > abs(down) and abs(across_down) > abs(across):
        raise _crooked("the photo's rows along the input's columns: it is transposed or turned by about 90 degrees")
    if down < 0 or across < 0:
        ways = [way for way, slope in (("top to bottom", down), ("left to right", across)) if slope < 0]
        raise _crooked(f"the photo mirrored {' and '.join(ways)}")
    for along, slope, cross, length in ((1, down, down_across, size[0]), (0, across, across_down, size[1])):
        if slope <= 0 or abs(cross) * reach[along] / 2 > RESIDUAL * unit_of(slope, length) * slope:
            angle = np.degrees(np.arctan2(abs(cross), slope))
            raise _crooked(f"the photo turned or sheared by about {angle:.1f} degrees")
    return down, across


def _crooked(seen: str) -> GeometryError:
    return GeometryError(
        "cannot follow the preprocessing: expected one straight line per axis between photo and input, got "
        f"{seen}. It mirrors, turns or bends the photo, or changes its brightness by more than a factor and an offset. {REMEDY}"
    )


def _centres(first: int, last: int, stride: int) -> NDArray[np.float64]:
    centres: NDArray[np.float64] = np.arange(first, last, stride).astype(np.float64) + 0.5
    return centres


def _middle(count: int) -> slice:
    quarter = count // 4 if count >= 2 * _FEWEST else 0
    return slice(quarter, count - quarter)


def _inner(places: NDArray[np.float64], slope: float, start: float, length: int) -> slice | None:
    """The pixels that lie off the photo's borders by more than a resampling kernel, or None where too few do."""
    margin = min(3 * max(1.0, slope) + 1, length / 4)
    shown = start + slope * places
    inside = np.flatnonzero((shown > margin) & (shown < length - margin))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) >= _FEWEST else None


def _slope(values: NDArray[np.float64], places: NDArray[np.float64]) -> float:
    off = places - places.mean()
    return float(off @ (values - values.mean()) / (off @ off))


def _line(values: NDArray[np.float64], places: NDArray[np.float64], slope: float | None = None) -> tuple[float, float]:
    slope = _slope(values, places) if slope is None else slope
    return slope, float(values.mean() - slope * places.mean())


def _placed(
    slopes: tuple[float, float],
    starts: tuple[float, float],
    shape: Size,
    size: Size,
    box: tuple[int, int, int, int],
) -> Placement:
    scale, offset, edges = [], [], []
    for axis in (0, 1):
        factor, first = whole_edges(slopes[axis], starts[axis], size[axis])
        last = first + factor * size[axis]
        near = max(1.0, factor)  # the threshold lies within a pixel of the edge, of photo or input
        shown_first, shown_last = float(box[axis]), float(box[axis + 2])
        if first > shown_first - near:
            shown_first = max(first, 0.0)
        if last < shown_last + near:
            shown_last = min(last, float(shape[axis]))
        scale.append(factor)
        offset.append(first)
        edges.append((shown_first, shown_last))
    return Placement(
        shape,
        (scale[0], scale[1]),
        (offset[0], offset[1]),
        (edges[0][0], edges[1][0], edges[0][1], edges[1][1]),
        (unit_of(slopes[0], size[0]), unit_of(slopes[1], size[1])),
    )
