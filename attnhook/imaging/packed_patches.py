"""Fits the grid that packed patches tile, in whatever order they come, to what the four synthetic photos became."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.affine_maps import (
    REMEDY,
    AffineMap,
    Array,
    Line,
    UnmeasurableError,
    check_straight,
    fitted_line,
    map_from_lines,
)
from attnhook.imaging.synthetic_photos import decoded
from attnhook.options import Size

Grid = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Row and column of every patch."""

_SHOWN = 0.5  # share of the largest gain from which an element of a patch shows photo
_PADDING = 0.02  # share of elements below which a patch is padding
_FULL = 0.999
_GUESS = 0.25  # how far, as a logarithm, rows and columns may be from what the patches' extent says


def fitted_patches(
    black: Array,
    white: Array,
    ramps: Sequence[Array],
    size: Size,
    *,
    known_side: int | None = None,
    known_grid: Size | None = None,
) -> AffineMap | None:
    """Find where the grid that patches `(patches, numbers)` tile is in the photo; None where they are padding alone."""
    side = _patch_side(black.shape[1], known_side)
    gain = white - black
    peak = float(np.abs(gain).max(initial=0))
    shown = np.abs(gain) > _SHOWN * peak
    counts = shown.sum(1)
    used = np.flatnonzero(counts > _PADDING * counts.max())
    if peak == 0 or not len(used):
        return None
    gain[~shown] = 1
    full = counts[used] >= _FULL * counts.max()
    centres, pitches = [], []
    for length, ramp in zip(size, ramps, strict=True):
        where = decoded((ramp - black) / gain)[used] * length
        where[~shown[used]] = 0
        centres.append(where.sum(1, dtype=np.float64) / counts[used])
        pitches.append(_pitch(where[full], shown[used][full], centres[-1][full], side, length))
    grid = _grid_places(centres, pitches, size)
    lines = [
        _line(axis, centres[axis][full], grid, full, pitch=pitches[axis], side=side, length=size[axis])
        for axis in (0, 1)
    ]
    rows, columns = _whole_grid(grid, used, len(black), known_grid)
    return map_from_lines(lines, (rows * side, columns * side), size)


def _patch_side(length: int, known: int | None) -> int:
    """The side of a patch, from the length of its vector."""
    for extra in (0, 2):  # Pix2Struct puts row and column in front
        for layers in (3, 6, 1):
            side = known or math.isqrt(max((length - extra) // layers, 0))
            if side and side * side * layers == length - extra:
                return side
    if known:
        return _patch_side(length, None)
    raise GeometryError(
        f"cannot follow the preprocessing: expected packed patches of side * side * 3 numbers, got {length} numbers each. {REMEDY}"
    )


def _pitch(
    where: NDArray[np.float32], shown: NDArray[np.bool_], centres: NDArray[np.float64], side: int, length: int
) -> float:
    """The length of a patch on the photo, from how far its elements are from its centre, averaged over all patches."""
    elements = shown.all(0)
    off = (where[:, elements] - centres[:, None]).mean(0, dtype=np.float64)
    pitch = float(np.sqrt(off.var() * 12 * side**2 / (side**2 - 1))) if side > 1 and off.size else 0.0
    if not pitch > 0:
        raise UnmeasurableError(
            "cannot measure which part of the photo each patch shows: expected brightness to change within a patch, got no change in a photo "
            f"{length} pixels long. Use a larger photo, or let your preprocessing return (pixels, ImageGeometry)."
        )
    return pitch


def _grid_places(centres: Sequence[NDArray[np.float64]], pitches: Sequence[float], size: Size) -> Grid:
    """Place the patches on the grid nearest to what their extent and length say, then by order alone, along both axes."""
    count = len(centres[0])
    guess = [np.ptp(centres[axis]) / pitches[axis] + 1 for axis in (0, 1)]
    rows = min(
        (number for number in range(1, count + 1) if count % number == 0),
        key=lambda number: abs(math.log(number / guess[0])) + abs(math.log(count / number / guess[1])),
    )
    grid = rows, count // rows
    if any(abs(math.log(number / about)) > _GUESS for number, about in zip(grid, guess, strict=True)):
        raise GeometryError(
            f"cannot follow the preprocessing: expected packed patches that tile the photo once, got {count} patches on a grid of about "
            f"{guess[0]:.1f} x {guess[1]:.1f}. {REMEDY}"
        )
    better = int(pitches[1] / size[1] > pitches[0] / size[0])  # the axis along which the ramps resolve patches better
    lines, ranks = np.zeros(count, np.int64), np.zeros(count, np.int64)
    lines[np.argsort(centres[better])] = np.repeat(np.arange(grid[better]), grid[1 - better])
    ranks[np.lexsort((centres[1 - better], lines))] = np.tile(np.arange(grid[1 - better]), grid[better])
    return (ranks, lines) if better else (lines, ranks)


def _line(
    axis: int,
    centres: NDArray[np.float64],
    grid: Grid,
    full: NDArray[np.bool_],
    *,
    pitch: float,
    side: int,
    length: int,
) -> Line:
    """The line along one axis, from the patches that show nothing but photo."""
    row, column = grid[0][full], grid[1][full]
    index = (row, column)[axis]
    if index.max() > index.min():
        pitch, first = fitted_line(centres, index)
    else:
        first = float(centres.mean() - pitch * index.mean())
    slope = max(pitch / side, 1e-9)
    residual: NDArray[Any] = np.zeros((int(grid[0].max()) + 1, int(grid[1].max()) + 1))
    residual[row, column] = centres - first - pitch * index
    check_straight(residual, slope, length, axis)
    return slope, first - pitch / 2


def _whole_grid(grid: Grid, used: NDArray[np.int64], total: int, known: Size | None) -> Size:
    """The grid with the rows and columns of padding that its own count, or the order of the patches, includes."""
    (row, column), shape = grid, (int(grid[0].max()) + 1, int(grid[1].max()) + 1)
    if known is None and used[-1] < len(used):  # all padding comes last, or there is none
        return shape
    if known is None:  # padding between patches: row by row, or in an unknown order
        by_row = range(shape[1], total // shape[0] + 1)
        width = next((number for number in by_row if np.array_equal(row * number + column, used)), None)
        known = None if width is None else (-(-total // width), width)
    if known is not None and used[0] == 0 and known[0] >= shape[0] and known[1] >= shape[1]:
        return known
    raise GeometryError(
        f"cannot follow the preprocessing: expected padding only below and to the right of the photo, got {total} patches of which "
        f"{len(used)} show the photo, as {shape[0]} x {shape[1]}, in an unknown order. {REMEDY}"
    )
