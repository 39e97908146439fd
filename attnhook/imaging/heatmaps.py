"""Patch maps to pixels of the photo: floating point in, floating point out, no colour.

One resampling step leads from the patch grid to the photo's pixels, through the geometry. Bilinear interpolation with half-pixel centres
(`align_corners=False`) and clamped edges keeps values within the range of the patches and the maximum in its place. Each photo pixel samples
the map at its centre: there is no smoothing if the photo has fewer pixels than the map has patches.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.options import NO_OVERLAP, Interpolation, Overlap, Size, choose

_CUBIC = -0.75  # the coefficient of torch's bicubic


def interpolate(
    patch_map: torch.Tensor | NDArray[np.floating],
    geometry: ImageGeometry,
    area: Size,
    mode: str = Interpolation.BILINEAR,
    overlap: Overlap = NO_OVERLAP,
) -> torch.Tensor:
    """Interpolate a map `(..., h, w)`, whose grid covers `area` of the input, to the photo's pixels, `(..., H, W)`."""
    interpolation = choose(Interpolation, mode, "mode")
    values = checked_map(patch_map)
    rows, columns = values.shape[-2:]
    vertical = _positions(geometry, 0, rows, area, overlap)
    horizontal = _positions(geometry, 1, columns, area, overlap)
    seen_rows, seen_columns = ~np.isnan(vertical), ~np.isnan(horizontal)
    if not (seen_rows.any() and seen_columns.any()):
        raise GeometryError(
            f"cannot place the patch grid: expected it to cover some pixel of the photo, got none for the grid {(rows, columns)} over "
            f"{tuple(area)} input pixels of a {geometry.image_size} photo. Check that geometry and map belong to the same photo."
        )
    y, x = vertical[seen_rows], horizontal[seen_columns]
    if interpolation is Interpolation.NEAREST:
        pixels = _own_patches(values, y, x)
    else:
        pixels = _interpolated(values, y, x, cubic=interpolation is Interpolation.BICUBIC)

    height, width = geometry.image_size
    if pixels.shape[-2:] == (height, width):
        return pixels
    top, left = int(seen_rows.argmax()), int(seen_columns.argmax())
    bottom, right = height - top - pixels.shape[-2], width - left - pixels.shape[-1]
    return torch.nn.functional.pad(pixels, (left, right, top, bottom), value=math.nan)


def checked_map(patch_map: torch.Tensor | NDArray[np.floating]) -> torch.Tensor:
    """Return the map as float32, or refuse what is not a map of patches."""
    values = patch_map if isinstance(patch_map, torch.Tensor) else torch.as_tensor(patch_map, device="cpu")
    if values.ndim < 2 or 0 in values.shape or values.is_complex():
        raise GeometryError(
            f"not a patch map: expected real numbers of shape (..., h, w), got {values.dtype} of shape {tuple(values.shape)}. "
            "Bring the row of patches to the grid first: layout.patches(row)."
        )
    values = values.float()
    if values.isinf().any():
        raise GeometryError("not a patch map: expected finite values (or NaN for dropped patches), got infinity.")
    return values


def _positions(geometry: ImageGeometry, axis: int, patches: int, area: Size, overlap: Overlap) -> NDArray[np.float64]:
    """Each photo pixel's centre along one axis in units of patches, from the first patch's edge; NaN where the model did not look."""
    centres = np.arange(geometry.image_size[axis], dtype=np.float64) + 0.5
    on_input = centres * geometry.scale[axis] + geometry.offset[axis]
    begin, end = seen_stretch(geometry, axis, area, overlap)
    seen = (on_input >= begin) & (on_input <= end)
    return np.where(seen, (on_input - overlap.start[axis]) * (patches / area[axis]), np.nan)


def seen_stretch(geometry: ImageGeometry, axis: int, area: Size, overlap: Overlap = NO_OVERLAP) -> tuple[float, float]:
    """Where what the patches saw of the photo begins and ends along one axis of the input, in pixels."""
    start, reach = overlap.start[axis], overlap.reach[axis]
    end = start + float(area[axis]) + reach
    return max(geometry.valid[axis], start - reach), min(geometry.valid[axis + 2], end)


def _own_patches(values: torch.Tensor, y: NDArray[np.float64], x: NDArray[np.float64]) -> torch.Tensor:
    """Give each pixel the value of its own patch."""
    rows, columns = (
        torch.as_tensor(np.clip(np.floor(at), 0, count - 1), dtype=torch.long, device=values.device)
        for at, count in ((y, values.shape[-2]), (x, values.shape[-1]))
    )
    return values.index_select(-2, rows).index_select(-1, columns)


def _interpolated(values: torch.Tensor, y: NDArray[np.float64], x: NDArray[np.float64], *, cubic: bool) -> torch.Tensor:
    vertical, horizontal = (
        torch.as_tensor(_weights(at, count, cubic=cubic), dtype=torch.float32, device=values.device)
        for at, count in ((y, values.shape[-2]), (x, values.shape[-1]))
    )
    missing = values.isnan()
    if missing.any():
        # 0 * NaN is NaN, so a matrix product would spread one dropped patch over its whole row and column.
        known = vertical @ (~missing).float() @ horizontal.T
        pixels = vertical @ values.masked_fill(missing, 0) @ horizontal.T / known
        pixels = pixels.masked_fill(_own_patches(missing, y, x), math.nan)
    else:
        pixels = vertical @ values @ horizontal.T
    if cubic:
        return pixels
    # Rounding alone may leave the range by one unit in the last place.
    low = values.masked_fill(missing, math.inf).amin((-2, -1), keepdim=True)
    high = values.masked_fill(missing, -math.inf).amax((-2, -1), keepdim=True)
    return pixels.clamp(low, high)


def _weights(at: NDArray[np.float64], patches: int, *, cubic: bool) -> NDArray[np.float64]:
    """Build the (pixels, patches) matrix that interpolates along one axis, edges clamped; each row sums to 1."""
    centred = at - 0.5
    first = np.floor(centred)
    t = centred - first
    if cubic:
        taps = [(-1, _cubic_outer(t + 1)), (0, _cubic_inner(t)), (1, _cubic_inner(1 - t)), (2, _cubic_outer(2 - t))]
    else:
        taps = [(0, 1 - t), (1, t)]
    weights = np.zeros((len(at), patches))
    rows = np.arange(len(at))
    for step, weight in taps:
        np.add.at(weights, (rows, np.clip(first + step, 0, patches - 1).astype(np.int64)), weight)
    return weights


def _cubic_inner(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1


def _cubic_outer(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
