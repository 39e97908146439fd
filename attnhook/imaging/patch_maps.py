"""Where the patches of a grid lie on the photo."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.options import PatchIndex, Size


def patch_edges(
    geometry: ImageGeometry, grid: Size, *, patch_area: Size | None = None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Find the borders between patches.

    Args:
        geometry: How the photo became the model's input.
        grid: Patch rows and columns.
        patch_area: As in `heatmap`.

    Returns:
        Horizontal borders `(rows + 1,)` and vertical borders `(columns + 1,)`, in photo pixels at pixel edges; they may lie beyond the photo.

    Example:
        >>> rows, columns = patch_edges(ImageGeometry.identity((32, 48)), (2, 3))
        >>> columns.tolist()
        [0.0, 16.0, 32.0, 48.0]
    """
    height, width = geometry.input_size if patch_area is None else patch_area
    y = np.arange(grid[0] + 1) * (height / grid[0])
    x = np.arange(grid[1] + 1) * (width / grid[1])
    return geometry.to_image(y, x)


def patch_box(geometry: ImageGeometry, grid: Size, patch: PatchIndex, *, patch_area: Size | None = None) -> Box:
    """Find one patch on the photo.

    Args:
        geometry: How the photo became the model's input.
        grid: Patch rows and columns.
        patch: Its row and column; negative numbers count from the end.
        patch_area: As in `heatmap`.

    Returns:
        Top, left, bottom, right, in photo pixels at pixel edges, cut at the photo's borders.

    Raises:
        GeometryError: If there is no such patch, or it lies wholly beyond the photo.

    Example:
        >>> patch_box(ImageGeometry.identity((32, 48)), (2, 3), (1, 0))
        (16.0, 0.0, 32.0, 16.0)
    """
    row, column = patch
    if not (-grid[0] <= row < grid[0] and -grid[1] <= column < grid[1]):
        raise GeometryError(
            f"patch {tuple(patch)} lies outside the grid: expected a row below {grid[0]} and a column below {grid[1]}."
        )
    row, column = row % grid[0], column % grid[1]
    ys, xs = patch_edges(geometry, grid, patch_area=patch_area)
    height, width = geometry.image_size
    top, bottom = np.clip(ys[[row, row + 1]], 0, height).tolist()
    left, right = np.clip(xs[[column, column + 1]], 0, width).tolist()
    if top >= bottom or left >= right:
        raise GeometryError(
            f"patch {tuple(patch)} shows padding: expected one that shows photo, got a patch beyond the {height} x {width} photo."
        )
    return top, left, bottom, right
