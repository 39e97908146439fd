"""Colours for heat maps, and heat maps over photos. The functions return pictures; they show, save and resize nothing.

`alpha` is always the heat map's opacity. Where the heat map is NaN (the model did not look there) the photo stays untouched, bit for bit.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import LEVELS, UNIFORM_TOP, Look, palette
from attnhook.options import Scale, ScaleOption, choose

Heatmap: TypeAlias = "torch.Tensor | NDArray[Any]"
"""One value per pixel, of shape (height, width); leading dimensions of length 1 are dropped."""

ROBUST_PERCENTILES = (1.0, 99.0)
"""The percentiles between which `scale="robust"` spreads the colours."""

_FLAT = 1e-6  # a relative range below this is float32 rounding, not structure
_NO_GRID = 100  # rows and columns; patch grids have fewer
_BAND = 2**16  # pixels that are painted at a time: few enough to stay in a CPU's second-level cache


def value_range(
    heatmap: Heatmap, scale: ScaleOption = Scale.MINMAX, *, uniform: float | None = None
) -> tuple[float, float]:
    """Choose the values that get the first and the last colour."""
    if not isinstance(scale, str):
        low, high = (float(edge) for edge in scale)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"unknown scale: expected (lowest, highest) with lowest < highest, got ({low}, {high}).")
        return low, high
    kind = choose(Scale, scale, "scale")
    if kind is Scale.UNIFORM:
        if uniform is None or not 0 < uniform <= 1:
            raise ValueError(
                f"scale='uniform' shows multiples of 1/N: expected uniform=1/N, got uniform={uniform}. "
                "Pass one over the number of keys, or scale='minmax'."
            )
        return 0.0, UNIFORM_TOP * uniform
    values = _values(heatmap)
    if kind is Scale.ROBUST:
        values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, 0.0
        low, high = (float(edge) for edge in np.percentile(values, ROBUST_PERCENTILES))
        if not _is_flat(low, high):
            return low, high
    low, high = value_ends(values)
    if np.isnan(low):
        return 0.0, 0.0
    if np.isinf([low, high]).any():
        raise GeometryError(
            "cannot stretch a heat map: expected finite values (or NaN where the model did not look), got infinity. "
            "Give the range: scale=(lowest, highest)."
        )
    return (low, low) if _is_flat(low, high) else (low, high)


def check_scale(scale: ScaleOption, *, mass: bool, shown: str) -> None:
    """Refuse multiples of uniform attention where values are not attention."""
    if isinstance(scale, str) and scale == Scale.UNIFORM and not mass:
        raise ValueError(
            f"scale='uniform' shows multiples of uniform attention: expected a map of attention, got one of {shown}. Use scale='minmax', "
            "'robust' or (lowest, highest)."
        )


def value_ends(heatmap: Heatmap) -> tuple[float, float]:
    """Find the lowest and the highest value, leaving NaN out."""
    values = _values(heatmap)
    if not values.size:
        return float("nan"), float("nan")
    return float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))


def colorize(
    heatmap: Heatmap,
    *,
    colormap: Any = "viridis",
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
) -> NDArray[np.uint8]:
    """Turn a heat map into colours."""
    values = _plane(heatmap)
    return np.array(_colored(_levels(values, value_range(values, scale, uniform=uniform)), palette(colormap)))


def blend(image: ImageSource, heatmap: Heatmap, look: Look) -> Image.Image:
    """Blend a heat map over its photo."""
    opacity = checked_opacity(look.alpha)
    picture = read_image(image)  # a copy: painted band by band, so that nothing else of the photo's size is made
    values = sized_like(picture, heatmap)
    bounds = value_range(values, look.scale, uniform=look.uniform)
    table = palette(look.colormap)
    weights = np.rint(np.arange(LEVELS) * (opacity / (LEVELS - 1))).astype(np.uint8)
    step = max(1, _BAND // picture.width)
    for top in range(0, picture.height, step):
        band = values[top : top + step]
        levels = _levels(band, bounds)
        mask = weights[levels] if look.weighted else np.full(band.shape, opacity, np.uint8)
        if np.isnan(band.min()):
            mask[np.isnan(band)] = 0
        picture.paste(_colored(levels, table), (0, top), Image.fromarray(mask))
    return picture


def overlay_batch(
    images: Sequence[ImageSource],
    heatmaps: Sequence[Heatmap],
    *,
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    weighted: bool = False,
) -> list[Image.Image]:
    """Blend heat maps over their photos, all on one range, so that the pictures can be compared.

    Args:
        images: The photos, as `read_image` takes them; of any sizes.
        heatmaps: One heat map per photo, (height, width) each, of the photo's size.
        colormap: A matplotlib colormap or its name.
        alpha: Opacity of the heat map, 0 to 1.
        uniform: 1/N, for `scale="uniform"`.
        weighted: Whether opacity rises with the value.
        scale: What `overlay` takes, but "minmax" and "robust" stretch all maps together. To give each its own range, call `overlay` on each.

    Returns:
        RGB images of the photos' sizes.

    Raises:
        GeometryError: If the numbers of photos and heat maps differ, or a heat map is not of its photo's size.

    Example:
        >>> photos = [Image.new("RGB", (64, 48)), Image.new("RGB", (32, 32))]
        >>> [picture.size for picture in overlay_batch(photos, [torch.rand(48, 64), torch.rand(32, 32)])]
        [(64, 48), (32, 32)]
    """
    if len(images) != len(heatmaps):
        raise GeometryError(
            f"cannot overlay a batch: expected one heat map for each photo, got {len(heatmaps)} heat maps and {len(images)} photos."
        )
    look = Look(colormap, alpha, common_range(heatmaps, scale, uniform=uniform), uniform, weighted)
    return [blend(image, one, look) for image, one in zip(images, heatmaps, strict=True)]


def common_range(
    heatmaps: Sequence[Heatmap], scale: ScaleOption = Scale.MINMAX, *, uniform: float | None = None
) -> ScaleOption:
    """Choose one range for several maps of any sizes."""
    if not isinstance(scale, str):
        return scale
    kind = choose(Scale, scale, "scale")
    if kind is Scale.UNIFORM:
        return scale
    if kind is Scale.MINMAX:
        parts = [np.array(value_ends(one), dtype=np.float32) for one in heatmaps]
    else:
        parts = [_values(one).ravel() for one in heatmaps]
    low, high = value_range(np.concatenate(parts), kind) if parts else (0.0, 0.0)
    return (low, high) if low < high else Scale.MINMAX


def checked_opacity(alpha: float) -> int:
    """Turn an opacity into steps of 1/255."""
    if not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise ValueError(f"unknown alpha: expected one number from 0 (photo only) to 1 (heat map only), got {alpha!r}.")
    return round(alpha * 255)


def sized_like(photo: Image.Image, heatmap: Heatmap) -> NDArray[np.float32]:
    """Return the values, or refuse a heat map that does not have its photo's size."""
    values = _plane(heatmap)
    if values.shape != (photo.height, photo.width):
        raise GeometryError(
            f"cannot overlay: expected a heat map of the photo's size {(photo.height, photo.width)}, got {values.shape}. "
            + _remedy(values.shape, (photo.height, photo.width))
        )
    return values


def _remedy(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """What to do about a heat map of another size than its photo's."""
    if shape == size[::-1]:
        return (
            "Height and width look swapped: make the geometry from (photo.height, photo.width); photo.size is (width, height), and a photo "
            "that its EXIF data rotate has the size of ImageOps.exif_transpose(photo)."
        )
    if min(shape) >= _NO_GRID:
        return (
            f"The geometry was made for a photo of {shape[0]} x {shape[1]} (height x width): make it from this photo's "
            "(photo.height, photo.width)."
        )
    return "For a patch map, also pass what turned the photo into pixels: overlay(photo, patch_map, transform)."


def _is_flat(low: float, high: float) -> bool:
    return high - low <= _FLAT * max(abs(low), abs(high))


def _levels(values: NDArray[np.float32], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Which of the 256 colours each value gets; NaN the first."""
    low, high = bounds
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    levels = np.subtract(values, low, dtype=np.float32)
    levels /= np.float32(high - low)
    levels *= np.float32(LEVELS - 1)
    # To the nearest colour; under "uniform" a flat map is then far from the border between two colours.
    levels += np.float32(0.5)
    np.fmax(levels, 0, out=levels)  # also turns NaN into 0
    np.fmin(levels, LEVELS - 1, out=levels)
    return levels.astype(np.uint8)


def _colored(levels: NDArray[np.uint8], table: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(levels)
    picture.putpalette(table.tobytes())  # Pillow looks colours up faster than numpy does
    return picture.convert("RGB")


def _values(heatmap: Heatmap) -> NDArray[np.float32]:
    if isinstance(heatmap, torch.Tensor):
        heatmap = heatmap.detach().cpu()
        heatmap = (heatmap.float() if heatmap.is_floating_point() else heatmap).numpy()
    values = np.asarray(heatmap)
    if values.dtype.kind not in "fiub":
        raise GeometryError(f"not a heat map: expected real numbers, got {values.dtype}.")
    return values.astype(np.float32, copy=False)


def _plane(heatmap: Heatmap) -> NDArray[np.float32]:
    values = _values(heatmap)
    shape = values.shape
    if values.ndim < 2 or values.size == 0 or any(length != 1 for length in shape[:-2]):
        raise GeometryError(
            f"not a heat map: expected shape (height, width), got {shape}. Pass one map at a time, such as heatmaps[0]."
        )
    return values.reshape(shape[-2:])
