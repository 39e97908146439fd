"""Colours for heat maps, and heat maps over photos. Returns pictures; shows, saves and resizes nothing.

`alpha` is always the heat map's opacity. Where the heat map is NaN (the model did not look there) the photo stays untouched, bit for bit.
"""

import difflib
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.images import ImageSource, read_image
from attnhook.options import Scale, ScaleOption, choose

Heatmap: TypeAlias = "torch.Tensor | NDArray[Any]"
"""One value per pixel, of shape (height, width); leading dimensions of length 1 are dropped."""

UNIFORM_TOP = 8.0
"""The top of the colours under `scale="uniform"`, in multiples of the uniform attention 1/N."""

_FLAT = 1e-6  # a relative range below this is float32 rounding, not structure
_LEVELS = 256


def value_range(
    heatmap: Heatmap, scale: ScaleOption = Scale.MINMAX, *, uniform: float | None = None
) -> tuple[float, float]:
    """Choose the values that get the first and the last colour.

    Args:
        heatmap: Any number of values, of any shape; NaN is ignored. Several maps at once get one range.
        scale: "minmax" for the map's own range, "uniform" for 0 to `UNIFORM_TOP` times `uniform`, or (lowest, highest) as given.
        uniform: With "uniform": the attention that each key gets when all get the same, 1/N.

    Returns:
        The lowest and the highest value. Equal where a map is flat, up to rounding, or all NaN.

    Raises:
        GeometryError: If the map holds infinities under "minmax".
        ValueError: If the scale is unknown or empty, or "uniform" comes without `uniform`.

    Example:
        >>> value_range(torch.tensor([[0.0, 0.5]]), "uniform", uniform=1 / 196)
        (0.0, 0.04081632653061224)
    """
    if not isinstance(scale, str):
        low, high = (float(edge) for edge in scale)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"unknown scale: expected (lowest, highest) with lowest < highest, got ({low}, {high}).")
        return low, high
    if choose(Scale, scale, "scale") is Scale.UNIFORM:
        if uniform is None or not 0 < uniform <= 1:
            raise ValueError(
                f"scale='uniform' shows multiples of 1/N: expected uniform=1/N, got uniform={uniform}. "
                "Pass one over the number of keys, or scale='minmax'."
            )
        return 0.0, UNIFORM_TOP * uniform
    values = _values(heatmap)
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if np.isnan(low):
        return 0.0, 0.0
    if np.isinf([low, high]).any():
        raise GeometryError(
            "cannot stretch a heat map: expected finite values (or NaN where the model did not look), got infinity. "
            "Give the range: scale=(lowest, highest)."
        )
    return (low, low) if high - low <= _FLAT * max(abs(low), abs(high)) else (low, high)


def colorize(
    heatmap: Heatmap,
    *,
    colormap: Any = "viridis",
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
) -> NDArray[np.uint8]:
    """Turn a heat map into colours.

    Args:
        heatmap: Values of shape (height, width), floating point or integer.
        colormap: The name of a matplotlib colormap, or a `Colormap`.
        scale: As in `value_range`.
        uniform: As in `value_range`.

    Returns:
        Colours of shape (height, width, 3), RGB. Values beyond the range get its end colours, a flat map under "minmax" and NaN the first.
    """
    return np.array(_colored(heatmap, colormap, scale, uniform))


def overlay(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
) -> Image.Image:
    """Blend a heat map over its photo.

    Args:
        image: The photo, as `read_image` takes it.
        heatmap: Values of shape (height, width), the photo's size, as `attnhook.imaging.heatmaps.heatmap` makes them.
        colormap: The name of a matplotlib colormap, or a `Colormap`. The default is perceptually uniform.
        alpha: The heat map's opacity, in steps of 1/255: 0 returns the photo, 1 the pure heat map.
        scale: "minmax" stretches this map over all colours, "uniform" shows multiples of 1/N on one fixed range (0 to `UNIFORM_TOP`), so
            that maps can be compared; or (lowest, highest).
        uniform: With "uniform": 1/N, one over the number of keys.

    Returns:
        An RGB image of the photo's size. Pixels where the heat map is NaN are the photo's own.

    Raises:
        GeometryError: If heat map and photo differ in size.
        ValueError: If `alpha` is not in [0, 1], or the colormap's name or the scale is unknown.

    Example:
        >>> photo = Image.new("RGB", (64, 48))
        >>> overlay(photo, torch.rand(48, 64), alpha=0.6).size
        (64, 48)
    """
    if not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise ValueError(f"unknown alpha: expected one number from 0 (photo only) to 1 (heat map only), got {alpha!r}.")
    photo = read_image(image)
    values = _plane(heatmap)
    if values.shape != (photo.height, photo.width):
        raise GeometryError(
            f"cannot overlay: expected a heat map of the photo's size {(photo.height, photo.width)}, got {values.shape}. "
            "Interpolate a patch map first: heatmap(patch_map, geometry)."
        )
    opacity = np.uint8(round(alpha * 255))
    mask = np.where(np.isnan(values), np.uint8(0), opacity)
    return Image.composite(_colored(values, colormap, scale, uniform), photo, Image.fromarray(mask))


def _colored(heatmap: Heatmap, colormap: Any, scale: ScaleOption, uniform: float | None) -> Image.Image:
    values = _plane(heatmap)
    low, high = value_range(values, scale, uniform=uniform)
    if high > low:
        levels = np.subtract(values, low, dtype=np.float32)
        levels /= np.float32(high - low)
        levels *= np.float32(_LEVELS - 1)
        levels += np.float32(
            0.5
        )  # to the nearest colour; under "uniform" a flat map then lies well inside one colour's share
    else:
        levels = np.zeros(values.shape, dtype=np.float32)
    np.fmax(levels, 0, out=levels)  # also turns NaN into 0
    np.fmin(levels, _LEVELS - 1, out=levels)
    picture = Image.fromarray(levels.astype(np.uint8))
    picture.putpalette(_palette(colormap).tobytes())  # Pillow looks colours up faster than numpy does
    return picture.convert("RGB")


def _palette(colormap: Any) -> NDArray[np.uint8]:
    """Sample a colormap at 256 places: (256, 3)."""
    import matplotlib as mpl

    if isinstance(colormap, str):
        if colormap not in mpl.colormaps:
            close = difflib.get_close_matches(colormap, list(mpl.colormaps), n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
            raise ValueError(f"unknown colormap: expected the name of a matplotlib colormap, got {colormap!r}.{hint}")
        colormap = mpl.colormaps[colormap]
    if not callable(colormap):
        raise TypeError(
            f"unknown colormap: expected a name or a matplotlib Colormap, got {type(colormap).__name__}. Try 'viridis'."
        )
    colors = np.asarray(colormap(np.linspace(0, 1, _LEVELS)))
    palette: NDArray[np.uint8] = np.rint(colors[:, :3] * 255).astype(np.uint8)
    return palette


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
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or values.size == 0:
        raise GeometryError(
            f"not a heat map: expected shape (height, width), got {shape}. Pass one map at a time, such as heatmaps[0]."
        )
    return values
