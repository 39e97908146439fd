"""The points of a photo at which maps of different models meet."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from attnhook.comparison.measurements import Measurement
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Size

_HALF = 0.5 - 1e-3
"""A little less than half a cell, so that a box of one cell keeps an extent."""


@dataclass(frozen=True)
class Lattice:
    """Evenly spaced points in a box of a photo, each in the middle of its cell.

    Attributes:
        size: Rows and columns of points.
        box: Top, left, bottom, right, in photo pixels.
    """

    size: Size
    box: Box

    @classmethod
    def of_photo(cls, size: Size, resolution: int | None) -> Self:
        """The photo's own pixels, or fewer points."""
        height, width = size
        part = 1.0 if resolution is None else min(1.0, resolution / max(height, width))
        points = max(1, round(height * part)), max(1, round(width * part))
        return cls(points, (0.0, 0.0, float(height), float(width)))

    def geometry(self, geometry: ImageGeometry) -> ImageGeometry:
        """A model's geometry, of these points instead of the photo's pixels."""
        top, left, bottom, right = self.box
        step = (bottom - top) / self.size[0], (right - left) / self.size[1]
        scale, offset = geometry.scale, geometry.offset
        return replace(
            geometry,
            image_size=self.size,
            scale=(scale[0] * step[0], scale[1] * step[1]),
            offset=(offset[0] + top * scale[0], offset[1] + left * scale[1]),
        )

    def sample(self, measurement: Measurement, patch_map: PatchMap) -> Tensor:
        """A map at these points.

        Returns:
            `(..., rows, columns)` float32, NaN where the model did not look.
        """
        if not self.seen(measurement).any():
            return torch.full((*patch_map.shape[:-2], *self.size), math.nan)
        return patch_map.heatmap(self.geometry(measurement.geometry))

    def seen(self, measurement: Measurement) -> Tensor:
        """Which points the model saw.

        Returns:
            `(rows, columns)` bool.
        """
        rows, columns = points_seen(self.geometry(measurement.geometry), measurement.area)
        return rows[:, None] & columns

    def nearest(self, pixels: Tensor) -> Tensor:
        """Values of the photo's pixels in which the points lie.

        Args:
            pixels: `(height, width)`, of a lattice over the whole photo.

        Returns:
            `(rows, columns)`.
        """
        rows, columns = (
            ((torch.arange(points) + 0.5) * length / points).long()
            for points, length in zip(self.size, pixels.shape, strict=True)
        )
        return pixels[rows][:, columns]


def points_seen(geometry: ImageGeometry, area: Size | None = None) -> tuple[Tensor, Tensor]:
    """Which pixels have their middle where a model looked."""
    area = area or geometry.input_size
    found = []
    for axis, length in enumerate(geometry.image_size):
        at = (torch.arange(length, dtype=torch.float64) + 0.5) * geometry.scale[axis] + geometry.offset[axis]
        found.append((at >= geometry.valid[axis]) & (at <= min(geometry.valid[axis + 2], float(area[axis]))))
    return found[0], found[1]


def at_patches(measurement: Measurement, patch_map: PatchMap, values: Tensor) -> Tensor:
    """What lies under the patches' centres.

    Args:
        values: `(rows, columns)` bool: of points over the whole photo.

    Returns:
        `(h, w)` bool; False where a centre lies outside the photo.
    """
    area = patch_map.area_on(measurement.geometry)
    centres = [(torch.arange(count) + 0.5) * length / count for count, length in zip(patch_map.grid, area, strict=True)]
    places, inside = [], []
    for at, length, points in zip(
        measurement.geometry.to_image(*centres), measurement.geometry.image_size, values.shape, strict=True
    ):
        inside.append((at >= 0) & (at < length))
        places.append((at * points / length).long().clamp(0, points - 1))
    return values[places[0]][:, places[1]] & inside[0][:, None] & inside[1]


def between_centres(box: Box, lattice: Lattice) -> Box:
    """A box of whole cells without its outer half cells, which some model may not have seen."""
    whole = lattice.box
    ends = []
    for first, last, length, points in zip(
        box[:2], box[2:], (whole[2] - whole[0], whole[3] - whole[1]), lattice.size, strict=True
    ):
        trimmed = length / points * _HALF
        ends.append((first + trimmed, last - trimmed))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def common_box(seen: Tensor, lattice: Lattice) -> Box:
    """The smallest box around the points that all models saw.

    Args:
        seen: `(rows, columns)` bool, some of them True.
    """
    rows, columns = (seen.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    top, left, bottom, right = lattice.box
    tall, wide = (bottom - top) / lattice.size[0], (right - left) / lattice.size[1]
    return (
        top + int(rows[0]) * tall,
        left + int(columns[0]) * wide,
        top + (int(rows[-1]) + 1) * tall,
        left + (int(columns[-1]) + 1) * wide,
    )
