"""The points of a photo at which the maps of different models are compared."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from attnhook.comparison.measurements import Measurement
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Size

_HALF = 0.5 - 1e-3  # a little less than half a cell, so that a box of one cell keeps an extent


@dataclass(frozen=True)
class SamplingGrid:
    """Evenly spaced points in a box of a photo, each in the middle of its cell."""

    size: Size  # rows and columns of points
    box: Box  # top, left, bottom, right, in photo pixels

    @classmethod
    def of_photo(cls, size: Size, resolution: int | None) -> Self:
        """The photo's own pixels, or fewer points."""
        height, width = size
        part = 1.0 if resolution is None else min(1.0, resolution / max(height, width))
        points = max(1, round(height * part)), max(1, round(width * part))
        return cls(points, (0.0, 0.0, float(height), float(width)))

    @property
    def step(self) -> tuple[float, float]:
        """Height and width of a cell, in photo pixels."""
        top, left, bottom, right = self.box
        return (bottom - top) / self.size[0], (right - left) / self.size[1]

    def geometry(self, geometry: ImageGeometry) -> ImageGeometry:
        """A model's geometry, of these points instead of the photo's pixels."""
        (tall, wide), (top, left) = self.step, self.box[:2]
        (down, across), (y, x) = geometry.scale, geometry.offset
        scale, offset = (down * tall, across * wide), (y + top * down, x + left * across)
        return replace(geometry, image_size=self.size, scale=scale, offset=offset)

    def sample(self, measurement: Measurement, patch_map: PatchMap) -> Tensor:
        """A map at these points: `(..., rows, columns)` float32, NaN where the model did not look."""
        if not self.seen(measurement).any():
            return torch.full((*patch_map.shape[:-2], *self.size), math.nan, dtype=torch.float32, device="cpu")
        return patch_map.heatmap(self.geometry(measurement.geometry))

    def seen(self, measurement: Measurement) -> Tensor:
        """Which points the model saw: `(rows, columns)` bool."""
        rows, columns = points_seen(self.geometry(measurement.geometry), measurement.area)
        return rows[:, None] & columns

    def nearest(self, pixels: Tensor) -> Tensor:
        """The values `(height, width)` of a whole photo at these points, each from the pixel that the point is in."""
        rows, columns = (
            ((torch.arange(points, dtype=torch.float64, device="cpu") + 0.5) * length / points).long()
            for points, length in zip(self.size, pixels.shape, strict=True)
        )
        return pixels[rows][:, columns]


def points_seen(geometry: ImageGeometry, area: Size | None = None) -> tuple[Tensor, Tensor]:
    """The pixel rows, and the pixel columns, whose middle the model saw."""
    area = area or geometry.input_size
    found = []
    for axis, length in enumerate(geometry.image_size):
        at = (torch.arange(length, dtype=torch.float64, device="cpu") + 0.5) * geometry.scale[axis] + geometry.offset[
            axis
        ]
        found.append((at >= geometry.valid[axis]) & (at <= min(geometry.valid[axis + 2], float(area[axis]))))
    return found[0], found[1]


def at_patches(measurement: Measurement, patch_map: PatchMap, values: Tensor) -> Tensor:
    """Values, bool `(rows, columns)` of a photo, at the patches' centres: `(h, w)` bool, False outside the photo."""
    edges = [torch.as_tensor(one, device="cpu") for one in patch_map.edges(measurement.geometry)]
    centres = [(one[1:] + one[:-1]) / 2 for one in edges]
    indices, inside = [], []
    for at, length, points in zip(centres, measurement.geometry.image_size, values.shape, strict=True):
        inside.append((at >= 0) & (at < length))
        indices.append((at * points / length).long().clamp(0, points - 1))
    return values[indices[0]][:, indices[1]] & inside[0][:, None] & inside[1]


def between_centres(box: Box, sampling: SamplingGrid) -> Box:
    """A box of whole cells without its outer half cells, which some model may not have seen."""
    (tall, wide), (top, left, bottom, right) = sampling.step, box
    return top + tall * _HALF, left + wide * _HALF, bottom - tall * _HALF, right - wide * _HALF


def common_box(seen: Tensor, sampling: SamplingGrid) -> Box:
    """The smallest box around the points that all models saw, `(rows, columns)` bool, some of them True."""
    rows, columns = (seen.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    (tall, wide), (top, left) = sampling.step, sampling.box[:2]
    return (
        top + int(rows[0]) * tall,
        left + int(columns[0]) * wide,
        top + (int(rows[-1]) + 1) * tall,
        left + (int(columns[-1]) + 1) * wide,
    )
