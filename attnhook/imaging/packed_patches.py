"""Fits the grid that packed patches tile, in whatever order they come, to what the four synthetic photos became."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.picture_fits import REMEDY, RESIDUAL, block_means, unit_of, whole_edges
from attnhook.imaging.placements import Placement, UnmeasurableError
from attnhook.imaging.synthetic_photos import decoded
from attnhook.options import Size

Array = NDArray[np.float32]

_ALIKE = 0.5  # share of the largest gain from which an element of a patch shows photo
_PADDING = 0.02  # share of elements below which a patch is padding
_FULL = 0.999
_GUESS = 0.25  # how far, as a logarithm, rows and columns may be from what the patches' extent says


def patch_side(length: int, known: int | None) -> int:
    """Find the side of a patch from the length of its vector."""
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
    black: Array,
    white: Array,
    ramps: Sequence[Array],
    size: Size,
    *,
    known_side: int | None = None,
    known_grid: Size | None = None,
) -> Placement | None:
    """Find where every patch lies, and the grid they tile.

    Args:
        black: `(patches, numbers)`: what a black photo became.
    """
    side = patch_side(black.shape[1], known_side)
    gain = white - black
    peak = float(np.abs(gain).max(initial=0))
    shown = np.abs(gain) > _ALIKE * peak
    counts = shown.sum(1)
    used = np.flatnonzero(counts > _PADDING * counts.max())
    if peak == 0 or not len(used):
        return None
    gain[~shown] = 1
    full = counts[used] >= _FULL * counts.max()
    centres, pitches = [], []
    for axis, ramp in enumerate(ramps):
        where = decoded((ramp - black) / gain)[used] * size[axis]
        where[~shown[used]] = 0
        centres.append(where.sum(1, dtype=np.float64) / counts[used])
        pitches.append(_pitch(where[full], shown[used][full], centres[axis][full], side, size[axis]))
    places = _places(centres, pitches, size)
    lines = [
        _line(centres[axis], places, full, axis=axis, pitch=pitches[axis], side=side, length=size[axis])
        for axis in (0, 1)
    ]
    rows, columns = _whole_grid(places, used, len(black), known_grid)
    shape = rows * side, columns * side
    factors, firsts = zip(*(whole_edges(*line, size[axis]) for axis, line in enumerate(lines)), strict=True)
    ends = [
        (max(first, 0.0), min(first + factor * length, float(edge)))
        for first, factor, length, edge in zip(firsts, factors, size, shape, strict=True)
    ]
    where_all, index = np.full((len(black), 2), np.nan), np.full((len(black), 2), -1)
    where_all[used], index[used] = np.stack(centres, axis=1), np.stack(places, axis=1)
    return Placement(
        shape,
        (factors[0], factors[1]),
        (firsts[0], firsts[1]),
        (ends[0][0], ends[1][0], ends[0][1], ends[1][1]),
        (unit_of(lines[0][0], size[0]), unit_of(lines[1][0], size[1])),
        where_all,
        index,
    )


def _pitch(
    where: NDArray[np.float32], shown: NDArray[np.bool_], centres: NDArray[np.float64], side: int, length: int
) -> float:
    """The length of a patch on the photo, from how far its elements lie from its centre, averaged over all patches."""
    elements = shown.all(0)
    off = (where[:, elements] - centres[:, None]).mean(0, dtype=np.float64)
    pitch = float(np.sqrt(off.var() * 12 * side**2 / (side**2 - 1))) if side > 1 and off.size else 0.0
    if not pitch > 0:
        raise UnmeasurableError(
            "cannot measure where the patches lie in the photo: expected brightness to change within a patch, got none, of a photo "
            f"{length} pixels long. Use a larger photo, or return (pixels, ImageGeometry)."
        )
    return pitch


def _places(
    centres: list[NDArray[np.float64]], pitches: list[float], size: Size
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of every patch: the grid nearest to what the patches' extent and length say, then order alone, along both axes."""
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
    centres: NDArray[np.float64],
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    full: NDArray[np.bool_],
    *,
    axis: int,
    pitch: float,
    side: int,
    length: int,
) -> tuple[float, float]:
    """Photo pixels per input pixel, and the photo coordinate of the input's edge."""
    index, values = places[axis][full], centres[full]
    if index.max() > index.min():
        off = index - index.mean()
        pitch = float(off @ (values - values.mean()) / (off @ off))
    first = float(values.mean() - pitch * index.mean())
    slope = pitch / side
    unit = unit_of(max(slope, 1e-9), length)
    residual = np.zeros((int(places[0].max()) + 1, int(places[1].max()) + 1))
    residual[places[0][full], places[1][full]] = values - first - pitch * index
    worst = float(np.abs(block_means(residual)).max()) / max(slope, 1e-9)
    if not worst <= RESIDUAL * unit:
        raise GeometryError(
            f"cannot follow the preprocessing: expected evenly spaced patches, got some {worst:.2f} input pixels off "
            f"{('vertically', 'horizontally')[axis]}, more than {RESIDUAL * unit:.2f}. It mirrors, turns or bends the photo, or changes its "
            f"brightness by more than a factor and an offset. {REMEDY}"
        )
    return slope, first - pitch / 2


def _whole_grid(
    places: tuple[NDArray[np.int64], NDArray[np.int64]], used: NDArray[np.int64], total: int, known: Size | None
) -> Size:
    """The grid with the rows and columns of padding that its own count, or the order of the patches, includes."""
    grid = int(places[0].max()) + 1, int(places[1].max()) + 1
    if (
        known is None and len(used) < total and used[-1] >= len(used)
    ):  # padding between patches: row by row, or nobody knows
        row, column = places
        for columns in range(grid[1], total // grid[0] + 1):
            if np.array_equal(row * columns + column, used):
                known = -(-total // columns), columns
                break
    padded_first = used[0] != 0
    if known is not None and not padded_first and known[0] >= grid[0] and known[1] >= grid[1]:
        return known
    if known is None and used[-1] < len(used):
        return grid
    raise GeometryError(
        f"cannot follow the preprocessing: expected padding below and to the right of the photo only, got {total} patches of which "
        f"{len(used)} show the photo on {grid[0]} x {grid[1]} places, in an order that is not known. {REMEDY}"
    )
