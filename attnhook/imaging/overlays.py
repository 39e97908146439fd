"""Colours for heat maps, and heat maps over photos. The functions return pictures; they show, save and resize nothing.

Opacity rises with the value: from nothing at the median of the map (under "uniform" at 1/N, in a given range at its lowest value) to `alpha`.
What the model did not see (NaN) is faded behind a thin frame.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from attnhook.errors import GeometryError
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import LEVELS, STEEPNESS, UNIFORM_TOP, Look, palette
from attnhook.options import Crop, Scale, ScaleOption, choose

Heatmap: TypeAlias = "torch.Tensor | NDArray[Any]"
"""One value per pixel, of shape (height, width); leading dimensions of length 1 are dropped."""

ROBUST_PERCENTILES = (1.0, 99.0)
"""The percentiles between which `scale="robust"` spreads the colours."""

_FLAT = 1e-6  # a relative range below this is float32 rounding, not structure
_NO_GRID = 100  # rows and columns; patch grids have fewer
_BAND = 2**16  # pixels that are painted at a time: few enough to stay in a CPU's second-level cache
_SAMPLES = 2**14  # pixels of which percentiles are taken: of a larger picture, every k-th row and column
_FRAMES_PER_EDGE = 500  # the frame is as wide as the photo's longer edge over this
_UNSEEN, _FRAME = (222, 222, 222), (96, 96, 96)
PAPER = (240, 240, 240)  # behind a map that is drawn without its photo


@dataclass(frozen=True)
class ColorScale:
    """The way from values to the 256 colours and their opacities."""

    low: float
    high: float
    floor: float  # where opacity begins
    logarithmic: bool = False

    @property
    def flat(self) -> bool:
        """Whether all values have one colour, and no opacity."""
        return not self.high > self.low

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Which of the 256 colours each value gets; NaN the first."""
        if self.flat:
            return np.zeros(values.shape, dtype=np.uint8)
        if self.logarithmic:
            levels = np.log(np.fmax(values, np.float32(self.low)) / np.float32(self.low))
            levels *= np.float32((LEVELS - 1) / math.log(self.high / self.low))
        else:
            levels = np.subtract(values, self.low, dtype=np.float32)
            levels /= np.float32(self.high - self.low)
            levels *= np.float32(LEVELS - 1)
        levels += np.float32(0.5)  # to the nearest colour
        np.fmax(levels, 0, out=levels)  # also turns NaN into 0
        np.fmin(levels, LEVELS - 1, out=levels)
        return levels.astype(np.uint8)

    def value(self, share: float) -> float:
        """The value at a share of the colours, 0 to 1."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + (self.high - self.low) * share

    def weights(self, look: Look) -> NDArray[np.uint8]:
        """The opacity of each of the 256 colours in steps of 1/255."""
        return np.rint(self.opacities(look) * 255).astype(np.uint8)

    def opacities(self, look: Look) -> NDArray[np.float64]:
        """The opacity of each of the 256 colours, 0 to 1."""
        alpha = checked_opacity(look.alpha) / 255
        if not look.weighted:
            return np.full(LEVELS, alpha)
        if self.flat:
            return np.zeros(LEVELS)
        begin = 0.0 if self.logarithmic else (self.floor - self.low) / (self.high - self.low)
        rise = (np.arange(LEVELS) / (LEVELS - 1) - begin) / (1 - begin)
        return alpha * np.clip(STEEPNESS * rise, 0.0, 1.0)


def color_scale(heatmap: Heatmap, look: Look) -> ColorScale:
    """Choose the values that get the first and the last colour, and the one where opacity begins."""
    low, high = value_range(heatmap, look.scale, uniform=look.uniform)
    if look.has_scale(Scale.UNIFORM):
        return ColorScale(low, high, low, logarithmic=True)
    own = isinstance(look.scale, str) and look.floor is None
    floor = _median([heatmap]) if own else low if look.floor is None else look.floor
    # A map of which more than half is high would have no opacity left to tell its values apart.
    return ColorScale(low, high, min(max(floor, low), (low + high) / 2))


def common_look(heatmaps: Sequence[Heatmap], look: Look) -> Look:
    """The same look with one range and one beginning of opacity for several maps of any sizes."""
    if not isinstance(look.scale, str) or look.has_scale(Scale.UNIFORM) or not heatmaps:
        return look
    floor = _median(heatmaps) if look.floor is None else look.floor
    return replace(look, scale=common_range(heatmaps, look.scale), floor=floor)


def _median(heatmaps: Sequence[Heatmap]) -> float:
    known = np.concatenate([_sampled(_values(one)).ravel() for one in heatmaps])
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else 0.0


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
        return uniform, UNIFORM_TOP * uniform
    values = _values(heatmap)
    if kind is Scale.ROBUST:
        known = _sampled(values)
        known = known[np.isfinite(known)]
        if not known.size:
            return 0.0, 0.0
        low, high = (float(edge) for edge in np.percentile(known, ROBUST_PERCENTILES))
        if not _is_flat(low, high):
            return low, high
    low, high = value_ends(values)
    if np.isnan(low):
        return 0.0, 0.0
    if np.isinf([low, high]).any():
        raise GeometryError(
            "cannot stretch a heat map: expected finite values (or NaN where the model did not look), got infinity. "
            "Pass the range: scale=(lowest, highest)."
        )
    return (low, low) if _is_flat(low, high) else (low, high)


def check_scale(scale: ScaleOption, *, mass: bool, shown: str) -> None:
    """Refuse multiples of uniform attention where values are not attention."""
    if isinstance(scale, str) and scale == Scale.UNIFORM and not mass:
        raise ValueError(
            f"scale='uniform' shows multiples of uniform attention: expected a map of attention, got one of {shown}. Use scale='minmax', "
            "'robust' or (lowest, highest)."
        )


def look_of(patch_map: Any, options: Mapping[str, Any], function: Callable[..., Any]) -> Look:
    """Read the look that a function was given, with the map's own 1/N."""
    if options.get("uniform") not in (None, patch_map.uniform):
        raise ValueError(
            f"a PatchMap knows its own uniform: expected no uniform=, got {options['uniform']}. Leave uniform= out."
        )
    colors = replace(Look.of(options, function), uniform=patch_map.uniform)
    check_scale(colors.scale, mass=patch_map.uniform is not None, shown=patch_map.quantity)
    return colors


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
    values = plane(heatmap)
    scaled = color_scale(values, Look(scale=scale, uniform=uniform))
    return np.array(_colored(Image.fromarray(scaled.levels(values)), palette(colormap)))


def blend(image: ImageSource, heatmap: Heatmap, look: Look) -> Image.Image:
    """Blend a heat map over its photo.

    Example:
        >>> photo = Image.new("RGB", (64, 48))
        >>> blend(photo, torch.rand(48, 64), Look(alpha=0.6)).size
        (64, 48)
    """
    crop, _ = choose(Crop, look.crop, "crop"), checked_opacity(look.fade, "fade")
    picture = read_image(image)  # a copy: painted band by band, so that nothing else of the photo's size is made
    values = sized_like(picture, heatmap)
    scaled = color_scale(values, look)
    table, weights = palette(look.colormap), scaled.weights(look).tolist()
    step, whole = max(1, _BAND // picture.width), True
    for top in range(0, picture.height, step):
        band = values[top : top + step]
        levels = Image.fromarray(scaled.levels(band))
        mask = levels.point(weights)  # Pillow looks numbers up faster than numpy does
        if np.isnan(band.min()):
            mask.paste(0, mask=Image.fromarray(np.isnan(band)))
            whole = False
        picture.paste(_colored(levels, table), (0, top), mask)
    return picture if whole else finish_unseen(picture, values, look.fade, crop)


def layer(heatmap: Heatmap, look: Look) -> Image.Image:
    """A heat map alone, as an RGBA picture that is transparent where nothing is painted: to lay over a photo elsewhere."""
    values = plane(heatmap)
    scaled = color_scale(values, look)
    levels = Image.fromarray(scaled.levels(values))
    opacity = levels.point(scaled.weights(look).tolist())
    opacity.paste(0, mask=Image.fromarray(np.isnan(values)))
    picture = _colored(levels, palette(look.colormap))
    picture.putalpha(opacity)
    return picture.crop(seen_box(values)) if look.crop == Crop.SEEN else picture


def finish_unseen(picture: Image.Image, values: NDArray[np.float32], fade: float, crop: str) -> Image.Image:
    """Fade what the model did not see (NaN) and frame what it saw, or crop to that; in place where it can be."""
    strength, crop = checked_opacity(fade, "fade"), choose(Crop, crop, "crop")
    left, top, right, bottom = seen_box(values)
    if strength:
        picture.paste(_UNSEEN, (0, 0), Image.fromarray(np.isnan(values).view(np.uint8) * np.uint8(strength)))
    if crop == Crop.SEEN:
        return picture.crop((left, top, right, bottom))
    width = max(1, round(max(picture.size) / _FRAMES_PER_EDGE)) if strength else 0
    for number in range(1, width + 1):  # around, not over, what the model saw
        ImageDraw.Draw(picture).rectangle(
            (left - number, top - number, right - 1 + number, bottom - 1 + number), outline=_FRAME
        )
    return picture


def seen_box(values: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the model saw."""
    seen = ~np.isnan(values)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not rows.size:
        return 0, 0, values.shape[1], values.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlay_batch(
    images: Sequence[ImageSource],
    heatmaps: Sequence[Heatmap],
    **look: Any,
) -> list[Image.Image]:
    """Blend heat maps over their photos, all on one range, so that the pictures can be compared.

    Args:
        images: The photos, as `read_image` takes them; of any sizes.
        heatmaps: One heat map per photo, (height, width) each, of the photo's size.
        **look: `colormap`, `alpha`, `scale`, `weighted`, `fade` and `crop`, as `overlay` takes them, and `uniform`: 1/N, for scale="uniform".
            "minmax" and "robust" stretch all maps together. To give each its own range, call `overlay` on each.

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
    colors = common_look(heatmaps, Look.of(look, overlay_batch))
    return [blend(image, one, colors) for image, one in zip(images, heatmaps, strict=True)]


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
        parts = [_sampled(_values(one)).ravel() for one in heatmaps]
    low, high = value_range(np.concatenate(parts), kind) if parts else (0.0, 0.0)
    return (low, high) if low < high else Scale.MINMAX


def checked_opacity(alpha: float, name: str = "alpha") -> int:
    """Turn an opacity into steps of 1/255."""
    if not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise ValueError(f"unknown {name}: expected one number from 0 (photo only) to 1 (no photo), got {alpha!r}.")
    return round(alpha * 255)


def sized_like(photo: Image.Image, heatmap: Heatmap) -> NDArray[np.float32]:
    """Return the values, or refuse a heat map that does not have its photo's size."""
    values = plane(heatmap)
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


def _sampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every k-th row and column of a large picture."""
    step = max(1, math.isqrt(values.size // _SAMPLES))
    return values[..., step // 2 :: step, step // 2 :: step] if values.ndim >= 2 else values


def _colored(levels: Image.Image, table: NDArray[np.uint8]) -> Image.Image:
    levels.putpalette(table.tobytes())
    return levels.convert("RGB")


def _values(heatmap: Heatmap) -> NDArray[np.float32]:
    if isinstance(heatmap, torch.Tensor):
        heatmap = heatmap.detach().cpu()
        heatmap = (heatmap.float() if heatmap.is_floating_point() else heatmap).numpy()
    values = np.asarray(heatmap)
    if values.dtype.kind not in "fiub":
        raise GeometryError(f"not a heat map: expected real numbers, got {values.dtype}.")
    return values.astype(np.float32, copy=False)


def plane(heatmap: Heatmap) -> NDArray[np.float32]:
    """The values `(height, width)` of one heat map."""
    values = _values(heatmap)
    shape = values.shape
    if values.ndim < 2 or values.size == 0 or any(length != 1 for length in shape[:-2]):
        raise GeometryError(
            f"not a heat map: expected shape (height, width), got {shape}. Pass one map at a time, such as heatmaps[0]."
        )
    return values.reshape(shape[-2:])
