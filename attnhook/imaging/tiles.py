"""One heat map from the maps of tiles of a large photo, without seams."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.heatmaps import checked_map
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Interpolation

Array = NDArray[np.float64]


def join_tiles(patch_maps: Iterable[PatchMap], geometries: Iterable[ImageGeometry | None]) -> Tensor:
    """Combine the maps of a photo's tiles into one heat map of the whole photo.

    Between patches, also those of two tiles that touch, values are interpolated linearly. Where tiles overlap, their values are averaged, and a
    tile's weight falls linearly to 0 towards its edge, so that no edge shows. Tiles cut from one map give the heat map of that map again. Every
    tile's attention adds up to 1 by itself: a value is a share of its own tile's attention.

    Args:
        patch_maps: One map per tile, each of one image and with one value per patch: the tiles of a batch, `raw_attention(capture.maps)`, or a
            list.
        geometries: For each tile, where its input lies in the whole photo, such as
            `ImageGeometry.identity((height, width)).crop((top, left), (h, w)).resize((224, 224))`, or what `ImageGeometry.of_each` returns. A
            tile whose geometry is None, as it shows padding only, is left out.

    Returns:
        `(H, W)` float32, the photo's size; NaN where no tile shows the photo, and at patches that the model dropped.

    Raises:
        TypeError: If something else is passed, such as tensors.
        GeometryError: If there is not one geometry per map, if they are of different photos, or if a map does not match its geometry.

    Example:
        >>> from attnhook import ImageGeometry
        >>> whole, corners = ImageGeometry.identity((400, 400)), [(0, 0), (0, 200), (200, 0), (200, 200)]
        >>> places = [whole.crop(corner, (200, 200)).resize((224, 224)) for corner in corners]
        >>> join_tiles(PatchMap(torch.rand(4, 14, 14), (224, 224), (224, 224)), places).shape
        torch.Size([400, 400])
    """
    maps, places = [*patch_maps], [*geometries]
    if len(maps) != len(places):
        raise GeometryError(
            f"cannot join tiles: expected one geometry per map, got {len(maps)} maps and {len(places)} geometries. Pass them in the same order."
        )
    for given in (*maps, *(place for place in places if place is not None)):
        if not isinstance(given, PatchMap | ImageGeometry):
            raise TypeError(
                f"cannot join tiles: expected PatchMaps and ImageGeometries, got {type(given).__name__}. Tensors become maps with "
                "PatchMap(values, input_size, area)."
            )
    tiles = [(one, place) for one, place in zip(maps, places, strict=True) if place is not None]
    sizes = {place.image_size for _, place in tiles}
    if len(sizes) != 1:
        raise GeometryError(
            f"cannot join tiles: expected geometries of one photo, got photos of {sorted(sizes) or 'no size'}. Start each from "
            "ImageGeometry.identity of the whole photo."
        )
    (size,) = sizes
    seen = [_seen(place) for _, place in tiles]
    values, weights = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    covered = torch.zeros(size, dtype=torch.bool)
    for number, (one, place) in enumerate(tiles):
        patches = checked_map(one._single().values).detach().double().cpu()
        spans = [_span(one, place, axis) for axis in (0, 1)]
        (down, top), (across, left) = (
            _tents(edges, length, *_overlaps(number, axis, seen))
            for axis, (edges, length) in enumerate(zip(spans, size, strict=True))
        )
        part = slice(top, top + len(down)), slice(left, left + len(across))
        known = ~patches.isnan()
        values[part] += down @ patches.nan_to_num(0.0) @ across.T
        weights[part] += down @ known.double() @ across.T
        covered |= (
            one.like(known.float().reshape(one.shape)).heatmap(place, mode=Interpolation.NEAREST).reshape(size) == 1
        )
    return (values / weights).masked_fill(~covered | (weights <= 0), math.nan).float()


def _seen(place: ImageGeometry) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last edge of the part of the photo that a tile shows, vertically and horizontally."""
    top, left, bottom, right = place.visible
    return (top, bottom), (left, right)


def _span(one: PatchMap, place: ImageGeometry, axis: int) -> Array:
    """The borders of a map's patches along one axis, in photo pixels, ascending."""
    edges: Array = np.asarray(one.edges(place)[axis], np.float64)
    if edges[0] > edges[-1]:
        raise GeometryError(
            "cannot join tiles: expected tiles that are not mirrored, got one that is. Leave out the flip."
        )
    return edges


def _overlaps(
    number: int, axis: int, seen: Sequence[tuple[tuple[float, float], tuple[float, float]]]
) -> tuple[float, float]:
    """How far other tiles reach into a tile from its first and from its last edge along one axis; 0 where none does."""
    (first, last), (low, high) = seen[number][axis], seen[number][1 - axis]
    before = after = 0.0
    for other in seen:
        (start, end), (bottom, top) = other[axis], other[1 - axis]
        if min(high, top) - max(low, bottom) <= 0:  # beside it
            continue
        if start < first < end < last:
            before = max(before, end - first)
        if first < start < last < end:
            after = max(after, last - start)
    return before, after


def _tents(edges: Array, length: int, before: float, after: float) -> tuple[Tensor, int]:
    """Weights `(pixels, patches)` of the patches along one axis, and the first pixel.

    A patch weighs 1 at its centre and falls to 0 at the centres of its neighbours, beyond the tile's edge as inside. Across an overlap, patches
    weigh less towards the tile's edge: the two tiles' weights at one place add up to 1.
    """
    step = float(edges[1] - edges[0])
    first = max(math.ceil(edges[0] - step / 2 - 0.5), 0)
    stop = min(math.floor(edges[-1] + step / 2 - 0.5) + 1, length)
    at, centres = np.arange(first, stop) + 0.5, (edges[:-1] + edges[1:]) / 2
    tents = np.clip(1 - np.abs(at[:, None] - centres) / step, 0, None)
    for inwards, overlap in ((centres - edges[0], before), (edges[-1] - centres, after)):
        if overlap:
            tents *= np.clip(inwards / overlap, 0, 1)
    return torch.from_numpy(tents), first
