"""Fits the grid that packed patches tile, in whatever order they come, to what the four synthetic photos became."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.picture_fits import REMEDY, RESIDUAL, unit_of, whole_edges
from attnhook.imaging.placements import Placement, UnmeasurableError
from attnhook.imaging.synthetic_photos import decoded
from attnhook.options import Size

Array = NDArray[np.float32]

_ALIKE = 0.5  # share of the largest gain from which an element of a patch shows photo
_PADDING = 0.02  # share of elements below which a patch is padding
_FULL = 0.999


def patch_side(length: int, known: int | None) -> int:
    """Find the side of a patch from the length of its vector.

    Args:
        length: Numbers per patch.
        known: The side that the processor names, if it does.

    Returns:
        The side in pixels.

    Raises:
        GeometryError: If no square patch of three channels has so many numbers.
    """
    if known and any(length - extra in (3 * known**2, 6 * known**2, known**2) for extra in (0, 2)):
        return known
    for extra in (0, 2):  # Pix2Struct puts row and column in front
        for layers in (3, 6, 1):
            side = math.isqrt(max((length - extra) // layers, 0))
            if side and side * side * layers == length - extra:
                return side
    raise GeometryError(
        f"cannot follow the preprocessing: expected packed patches of side * side * 3 numbers, got {length} each. {REMEDY}"
    )


def fitted_patches(
    black: Array, white: Array, ramps: Sequence[Array], size: Size, known_side: int | None
) -> Placement | None:
    """Find where every patch lies, and the grid they tile.

    Args:
        black: `(patches, numbers)`: what a black photo became.
        white: The same of a white photo.
        ramps: The same of a ramp from top to bottom and of one from left to right.
        size: The photo's height and width.
        known_side: The side of a patch that the processor names, if it does.

    Returns:
        The placement, or None where all patches are padding.

    Raises:
        GeometryError: If the patches are no grid on the photo.
    """
    side = patch_side(black.shape[1], known_side)
    gain = white - black
    peak = float(np.abs(gain).max(initial=0))
    shown = np.abs(gain) > _ALIKE * peak
    counts = shown.sum(1)
    used = counts > _PADDING * counts.max()
    if peak == 0 or not used.any():
        return None
    full = counts >= _FULL * counts.max()
    gain[~shown] = 1
    ways = []
    for axis, ramp in enumerate(ramps):
        where = decoded((ramp - black) / gain) * size[axis]
        where[~shown] = 0
        centres = where.sum(1, dtype=np.float64) / np.maximum(counts, 1)
        ways.append(_axis(where, shown, centres, full, used, side, size[axis], ("vertically", "horizontally")[axis]))
    rows, columns = ways[0].count, ways[1].count
    cells = ways[0].index[used] * columns + ways[1].index[used]
    if len(np.unique(cells)) != len(cells) or len(cells) != rows * columns:
        raise GeometryError(
            f"cannot follow the preprocessing: expected packed patches that tile the photo once, got {len(cells)} patches on "
            f"{len(np.unique(cells))} places of a grid of {rows} x {columns}. {REMEDY}"
        )
    shape = rows * side, columns * side
    factors, firsts = zip(*(whole_edges(way.slope, way.start, size[axis]) for axis, way in enumerate(ways)), strict=True)
    ends = [
        (max(first, 0.0), min(first + factor * length, float(edge)))
        for first, factor, length, edge in zip(firsts, factors, size, shape, strict=True)
    ]
    return Placement(
        shape,
        (factors[0], factors[1]),
        (firsts[0], firsts[1]),
        (ends[0][0], ends[1][0], ends[0][1], ends[1][1]),
        (unit_of(ways[0].slope, size[0]), unit_of(ways[1].slope, size[1])),
        np.stack([np.where(used, way.centres, np.nan) for way in ways], axis=1),
        np.stack([np.where(used, way.index, -1) for way in ways], axis=1),
    )


class _Axis:
    """One axis of the grid: the line from patch pixels to photo pixels, and the index of every patch."""

    def __init__(self, slope: float, start: float, index: NDArray[np.int64], centres: NDArray[np.float64]) -> None:
        self.slope = slope
        self.start = start
        self.index = index
        self.count = int(index.max()) + 1
        self.centres = centres


def _axis(
    where: NDArray[np.float32],
    shown: NDArray[np.bool_],
    centres: NDArray[np.float64],
    full: NDArray[np.bool_],
    used: NDArray[np.bool_],
    side: int,
    length: int,
    name: str,
) -> _Axis:
    pitch = _pitch(where, shown, centres, full, side)  # photo pixels per patch, from within the patches
    if not pitch > 0:
        raise UnmeasurableError(
            f"cannot measure where the patches lie in the photo: expected brightness to change within a patch, got none {name}, of a photo "
            f"{length} pixels long. Use a larger photo, or return (pixels, ImageGeometry)."
        )
    order = np.argsort(centres)
    ranks = np.cumsum(np.diff(centres[order][used[order]], prepend=np.nan) > pitch / 2)
    index = np.full(len(centres), -1)
    index[order[used[order]]] = ranks
    if index.max() > 0 and len(np.unique(index[full])) > 1:
        places, values = index[full], centres[full]
        off = places - places.mean()
        pitch = float(off @ (values - values.mean()) / (off @ off))
    first = float(centres[full].mean() - pitch * index[full].mean())
    slope = pitch / side
    unit = unit_of(slope, length)
    worst = float(np.abs(centres - first - pitch * index)[full].max()) / slope
    if not worst <= RESIDUAL * unit:
        raise GeometryError(
            f"cannot follow the preprocessing: expected evenly spaced patches, got some {worst:.2f} input pixels off {name}, more than "
            f"{RESIDUAL * unit:.2f}. It mirrors, turns or bends the photo, or changes its brightness by more than a factor and an offset. {REMEDY}"
        )
    return _Axis(slope, first - pitch / 2, index, centres)


def _pitch(
    where: NDArray[np.float32],
    shown: NDArray[np.bool_],
    centres: NDArray[np.float64],
    full: NDArray[np.bool_],
    side: int,
) -> float:
    """The length of a patch on the photo, from how far its elements lie from its centre, averaged over all patches."""
    elements = shown[full].all(0)
    off = (where[full][:, elements] - centres[full][:, None]).mean(0, dtype=np.float64)
    share = (side**2 - 1) / (12 * side**2) if side > 1 else 1 / 12
    return float(np.sqrt(off.var() / share))
