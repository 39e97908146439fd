"""Styles other than a heat map: contours, patches, a mask. All leave what the model did not see unchanged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from attnhook.imaging.looks import LEVELS, Look, palette
from attnhook.imaging.overlays import Heatmap, blend, checked_opacity, sized_like, value_range
from attnhook.options import Interpolation, Style

_SUPERSAMPLING = 2
_LINES_PER_EDGE = 300  # a line is as wide as the photo's shorter edge over this
_CASING = (0, 0, 0)  # a dark line under a light one is visible on any photo
_SUMMING = 1e-12  # relative rounding of a sum of shares
_GRID_COLOR, _GRID_OPACITY = (255, 255, 255), 0.35
_OUTLINE_COLOR = (255, 176, 0)
_LEVELS = 4  # contour lines

_DEFAULTS: Mapping[str, Any] = vars(Look()) | {"mode": Interpolation.BILINEAR, "keep": 0.6}
_TAKEN: Mapping[Style, tuple[str, ...]] = {
    Style.HEAT: ("colormap", "alpha", "scale", "mode", "weighted"),
    Style.PATCHES: ("colormap", "alpha", "scale"),
    Style.CONTOURS: ("colormap", "scale", "mode"),
    Style.MASK: ("alpha", "keep"),
}

Line = list[tuple[float, float]]
"""Points (x, y) in photo pixels at pixel edges."""


def check_style(style: Style, options: Mapping[str, Any]) -> None:
    """Refuse options that a style would ignore.

    Example:
        >>> check_style(Style.MASK, {"alpha": 0.8, "colormap": "viridis"})
    """
    for name, value in options.items():
        if name not in _TAKEN[style] and value != _DEFAULTS[name]:
            raise ValueError(
                f"style {style.value!r} takes no {name}: expected some of {', '.join(_TAKEN[style])}, got {name}={value!r}. Leave it out."
            )


def draw_contours(photo: Image.Image, values: Heatmap, look: Look) -> Image.Image:
    """Draw four lines of equal value over the photo, which stays visible between them."""
    known = sized_like(photo, values)
    low, high = value_range(known, look.scale, uniform=look.uniform)
    if not high > low:
        return photo
    table, drawn, width = palette(look.colormap), photo.copy(), _line_width(photo)
    for level in np.linspace(low, high, _LEVELS + 2)[1:-1]:
        red, green, blue = table[round((level - low) / (high - low) * (LEVELS - 1))].tolist()
        lines = _contours(known, float(level))
        _stroke(drawn, lines, _CASING, width * 2.2, 0.55)
        _stroke(drawn, lines, (red, green, blue), width, 1.0)
    return _where_seen(drawn, photo, known)


def draw_patches(
    photo: Image.Image, values: Heatmap, edges: tuple[NDArray[Any], NDArray[Any]], look: Look
) -> Image.Image:
    """Paint every patch in one colour, with thin borders: what the model computed, before any interpolation."""
    picture = blend(photo, values, look)
    if look.alpha == 0:
        return picture
    ys, xs = edges
    lines: list[Line] = [[(xs[0], y), (xs[-1], y)] for y in ys] + [[(x, ys[0]), (x, ys[-1])] for x in xs]
    lined = picture.copy()
    _stroke(lined, lines, _GRID_COLOR, _line_width(picture) / 2, _GRID_OPACITY)
    return _where_seen(lined, picture, sized_like(picture, values))


def draw_mask(photo: Image.Image, inside: Heatmap, alpha: float) -> Image.Image:
    """Darken what the model saw outside a mask, and outline the mask."""
    opacity = checked_opacity(alpha)
    known = sized_like(photo, inside)
    if opacity == 0:
        return photo
    shade = Image.fromarray(np.where(known == 0, np.uint8(opacity), np.uint8(0)))
    picture = Image.composite(Image.new("RGB", photo.size), photo, shade)
    _stroke(picture, _contours(np.nan_to_num(known), 0.5), _OUTLINE_COLOR, _line_width(photo) * 1.5, 1.0)
    return _where_seen(picture, photo, known)


def mass_mask(patch_map: torch.Tensor, keep: float = 0.6) -> torch.Tensor:
    """Choose the fewest patches that hold a share of the mass, as in DINO's figures (Caron et al., arXiv 2104.14294)."""
    if not 0 < keep <= 1:
        raise ValueError(f"cannot keep a share of the mass: expected 0 < keep <= 1, got {keep}.")
    values = patch_map.detach().cpu().double().flatten().nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    if ((values < 0) | values.isinf()).any():
        raise ValueError(
            f"no share of the mass: expected finite values of at least 0, got {values.min():.3g} to {values.max():.3g}. Clamp the map."
        )
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    short = before < keep * (1 - _SUMMING) * ordered.sum()
    chosen = torch.zeros_like(short).scatter(0, order, short & (ordered > 0))
    return chosen.reshape(patch_map.shape)


def _contours(values: NDArray[np.float32], level: float) -> list[Line]:
    """Lines of one value; pixel centres are half a pixel in."""
    from contourpy import contour_generator

    masked = np.ma.masked_invalid(values)
    lines: list[Any] = list(contour_generator(z=masked).lines(level) or ())
    return [[(float(x) + 0.5, float(y) + 0.5) for x, y in line] for line in lines]


def _where_seen(drawn: Image.Image, photo: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """What was drawn, but the photo where the model did not look: the edge of the crop cuts the lines."""
    return Image.composite(drawn, photo, Image.fromarray((~np.isnan(values)).astype(np.uint8) * np.uint8(255)))


def _line_width(photo: Image.Image) -> float:
    return max(1.0, min(photo.size) / _LINES_PER_EDGE)


def _stroke(
    picture: Image.Image, lines: Sequence[Line], color: tuple[int, int, int], width: float, opacity: float
) -> None:
    """Draw smooth lines into a picture."""
    layer = Image.new("L", (picture.width * _SUPERSAMPLING, picture.height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(layer)
    thick = max(1, math.floor(width * _SUPERSAMPLING + 0.5))
    for line in lines:
        scaled = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in line]
        draw.line(scaled, fill=255, width=thick, joint="curve")
    mask = layer.reduce(_SUPERSAMPLING).point([round(level * opacity) for level in range(256)])
    picture.paste(color, (0, 0), mask)
