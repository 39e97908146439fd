"""Styles other than a heat map: contours, patches, a mask. Lines are light on dark, so that they show on any photo."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from attnhook.imaging.looks import LEVELS, Look, palette
from attnhook.imaging.overlays import Heatmap, blend, checked_opacity, color_scale, finish_unseen, sized_like
from attnhook.options import Crop, Interpolation, Style

_SUPERSAMPLING = 2
_LINES_PER_EDGE = 300  # a line is as wide as the photo's shorter edge over this
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)
_SUMMING = 1e-12  # relative rounding of a sum of shares
_GRID_OPACITY = 0.35
_NARROWEST_PATCH = 20  # pixels: borders between smaller patches would cover what they bound
SHADE = 0.6  # the opacity of a mask's shade
_LEVELS = 4  # contour lines

DEFAULTS: Mapping[str, Any] = vars(Look()) | {"mode": Interpolation.BILINEAR, "keep": 0.6, "smallest": 1}
_TAKEN: Mapping[Style, tuple[str, ...]] = {
    Style.HEAT: ("colormap", "alpha", "scale", "floor", "mode", "weighted"),
    Style.PATCHES: ("colormap", "alpha", "scale", "floor", "weighted"),
    Style.CONTOURS: ("colormap", "scale", "mode"),
    Style.MASK: ("alpha", "keep", "smallest"),
}
_ALWAYS = ("fade", "crop", "uniform")

Line = list[tuple[float, float]]
"""Points (x, y) in photo pixels at pixel edges."""


def check_style(style: Style, options: Mapping[str, Any]) -> None:
    """Refuse options that a style would ignore.

    Example:
        >>> check_style(Style.MASK, {"alpha": 0.8, "colormap": "plasma"})
    """
    for name, value in options.items():
        if name not in (*_TAKEN[style], *_ALWAYS) and value != DEFAULTS[name]:
            raise ValueError(
                f"style {style.value!r} does not take {name}: expected one of {', '.join(_TAKEN[style])}, got {name}={value!r}. Leave it out."
            )


def draw_contours(photo: Image.Image, values: Heatmap, look: Look) -> Image.Image:
    """Draw four lines of equal value over the photo, which stays visible between them."""
    known = sized_like(photo, values)
    scaled = color_scale(known, look)
    table, drawn, width = palette(look.colormap), photo.copy(), _line_width(photo)
    for share in () if scaled.flat else np.linspace(0, 1, _LEVELS + 2)[1:-1]:
        lines = _contours(known, scaled.value(float(share)))
        _stroke(drawn, lines, _DARK, width * 3.2, 0.5)
        _stroke(drawn, lines, _LIGHT, width * 2.2, 0.9)
        red, green, blue = table[round(float(share) * (LEVELS - 1))].tolist()
        _stroke(drawn, lines, (red, green, blue), width * 1.2, 1.0)
    return finish_unseen(_where_seen(drawn, photo, known), known, look.fade, look.crop)


def draw_patches(
    photo: Image.Image, values: Heatmap, edges: tuple[NDArray[Any], NDArray[Any]], look: Look
) -> Image.Image:
    """Paint every patch in one colour, with thin borders where patches are large: what the model computed, before any interpolation."""
    picture = blend(photo, values, replace(look, fade=0, crop=Crop.PHOTO))
    known = sized_like(photo, values)
    ys, xs = edges
    if look.alpha and min(np.abs(np.diff(ys)).min(), np.abs(np.diff(xs)).min()) >= _NARROWEST_PATCH:
        lines: list[Line] = [[(xs[0], y), (xs[-1], y)] for y in ys] + [[(x, ys[0]), (x, ys[-1])] for x in xs]
        lined = picture.copy()
        _stroke(lined, lines, _LIGHT, _line_width(picture) / 2, _GRID_OPACITY)
        picture = _where_seen(lined, picture, known)
    return finish_unseen(picture, known, look.fade, look.crop)


def draw_mask(photo: Image.Image, inside: Heatmap, look: Look) -> Image.Image:
    """Darken what the model saw outside a mask, and outline the mask."""
    known, picture = sized_like(photo, inside), photo
    if opacity := checked_opacity(look.alpha):
        shade = Image.fromarray(np.where(known == 0, np.uint8(opacity), np.uint8(0)))
        picture = Image.composite(Image.new("RGB", photo.size), photo, shade)
        outline(picture, np.nan_to_num(known))
        picture = _where_seen(picture, photo, known)
    return finish_unseen(picture.copy(), known, look.fade, look.crop)


def outline(picture: Image.Image, inside: NDArray[np.float32]) -> None:
    """Draw the outline of a mask into a picture: light on dark, so that it shows on any photo."""
    lines, width = _contours(inside, 0.5), _line_width(picture)
    _stroke(picture, lines, _DARK, width * 3, 0.6)
    _stroke(picture, lines, _LIGHT, width * 1.4, 1.0)


def mass_mask(patch_map: torch.Tensor, keep: float = 0.6) -> torch.Tensor:
    """Choose the fewest patches that hold a share of the mass, as in DINO's figures (Caron et al., arXiv 2104.14294)."""
    if not 0 < keep <= 1:
        raise ValueError(f"bad keep: expected 0 < keep <= 1, got {keep}.")
    values = patch_map.detach().cpu().double().flatten().nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    if ((values < 0) | values.isinf()).any():
        raise ValueError(
            f"cannot take a share of the map's total: expected finite values of at least 0, got {values.min():.3g} to {values.max():.3g}. "
            "Clamp the map."
        )
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    short = before < keep * (1 - _SUMMING) * ordered.sum()
    chosen = torch.zeros_like(short).scatter(0, order, short & (ordered > 0))
    return chosen.reshape(patch_map.shape)


def without_small_parts(mask: torch.Tensor, smallest: int) -> torch.Tensor:
    """Leave out connected parts, `(h, w)` and their eight neighbours, of fewer than `smallest` patches."""
    if smallest <= 1:
        return mask
    left, kept = {(row, column) for row, column in mask.nonzero().tolist()}, torch.zeros_like(mask)
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            near = {(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)} & left
            left -= near
            edge += near
        if len(part) >= smallest:
            kept[tuple(torch.tensor(sorted(part), device="cpu").T)] = True
    return kept


def _contours(values: NDArray[np.float32], level: float) -> list[Line]:
    """Lines of one value; pixel centres are half a pixel in."""
    from contourpy import contour_generator

    if min(values.shape) < 2:
        return []
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
